//! Expressions on columns, evaluated here and not in Python.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_arith::boolean::{and_kleene, is_null, not, or_kleene};
use arrow_arith::numeric::{add, div, mul, rem, sub};
use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, BooleanArray, Datum, Float64Array, Int64Array, RecordBatch, RecordBatchOptions, Scalar,
    StringArray, new_null_array,
};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_ord::cmp;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use arrow_select::zip::zip;
use arrow_string::like::{contains, ends_with, starts_with};
use pelton_core::service::show_columns;
use pelton_core::{Error, Result};
use pelton_dataflow::operator::{Operator, Output, Transform};
use serde::Deserialize;

/// As Python writes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Expression {
    Column {
        name: String,
    },
    Literal {
        value: serde_json::Value,
    },
    Not {
        of: Box<Expression>,
    },
    IsNull {
        of: Box<Expression>,
    },
    Length {
        of: Box<Expression>,
    },
    Cast {
        of: Box<Expression>,
        to: String,
    },
    /// The same values, as those of an extension type (tensors, images): what marks their column as one.
    Mark {
        of: Box<Expression>,
        marks: HashMap<String, String>,
    },
    #[serde(untagged)]
    Binary {
        op: Binary,
        left: Box<Expression>,
        right: Box<Expression>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
    Coalesce,
    Contains,
    StartsWith,
    EndsWith,
}

/// One value a row, or one for all.
enum Value {
    Column(ArrayRef),
    Same(ArrayRef),
}

impl Value {
    fn data_type(&self) -> &DataType {
        match self {
            Value::Column(array) | Value::Same(array) => array.data_type(),
        }
    }

    fn map(self, change: impl Fn(&ArrayRef) -> Result<ArrayRef, ArrowError>) -> Result<Value, ArrowError> {
        Ok(match self {
            Value::Column(array) => Value::Column(change(&array)?),
            Value::Same(array) => Value::Same(change(&array)?),
        })
    }

    fn datum(&self) -> Box<dyn Datum> {
        match self {
            Value::Column(array) => Box::new(array.clone()),
            Value::Same(array) => Box::new(Scalar::new(array.clone())),
        }
    }

    fn rows(self, rows: usize) -> Result<ArrayRef, ArrowError> {
        match self {
            Value::Column(array) => Ok(array),
            Value::Same(array) => {
                let indices = arrow_array::UInt32Array::from(vec![0; rows]);
                arrow_select::take::take(&array, &indices, None)
            }
        }
    }
}

impl Expression {
    /// The columns that it looks at.
    fn columns(&self, read: &mut Vec<String>) {
        match self {
            Expression::Column { name } => read.push(name.clone()),
            Expression::Literal { .. } => {}
            Expression::Not { of }
            | Expression::IsNull { of }
            | Expression::Length { of }
            | Expression::Cast { of, .. }
            | Expression::Mark { of, .. } => of.columns(read),
            Expression::Binary { left, right, .. } => {
                left.columns(read);
                right.columns(read);
            }
        }
    }

    /// The values for some rows.
    pub(crate) fn evaluate(&self, rows: &RecordBatch) -> Result<ArrayRef> {
        self.value(rows)?.rows(rows.num_rows()).map_err(|e| invalid(&e))
    }

    fn value(&self, rows: &RecordBatch) -> Result<Value> {
        let wrong = |e: ArrowError| invalid(&e);
        match self {
            Expression::Column { name } => {
                let missing = || {
                    let columns = show_columns(&rows.schema());
                    Error::invalid(format!("there is no column `{name}`; there are ({columns})"))
                };
                rows.column_by_name(name).cloned().map(Value::Column).ok_or_else(missing)
            }
            Expression::Literal { value } => Ok(Value::Same(literal(value)?)),
            Expression::Not { of } => of.value(rows)?.map(|a| Ok(Arc::new(not(boolean(a)?)?))).map_err(wrong),
            Expression::IsNull { of } => of.value(rows)?.map(|a| Ok(Arc::new(is_null(a)?))).map_err(wrong),
            Expression::Length { of } => of
                .value(rows)?
                .map(|a| converted(&arrow_string::length::length(a)?, &DataType::Int64))
                .map_err(wrong),
            Expression::Cast { of, to } => {
                let to = named_type(to)?;
                of.value(rows)?.map(|a| converted(a, &to)).map_err(wrong)
            }
            Expression::Mark { of, .. } => of.value(rows),
            Expression::Binary { op, left, right } => {
                binary(*op, left.value(rows)?, right.value(rows)?, rows.num_rows()).map_err(wrong)
            }
        }
    }
}

fn binary(op: Binary, left: Value, right: Value, rows: usize) -> Result<Value, ArrowError> {
    let (left, right) = alike(op, left, right)?;
    let same = matches!((&left, &right), (Value::Same(_), Value::Same(_)));
    let (l, r) = (left.datum(), right.datum());
    let (l, r) = (l.as_ref(), r.as_ref());
    let truth = |array: BooleanArray| Arc::new(array) as ArrayRef;
    let result = match op {
        Binary::Add => add(l, r)?,
        Binary::Sub => sub(l, r)?,
        Binary::Mul => mul(l, r)?,
        Binary::Div => div(l, r)?,
        Binary::Rem => rem(l, r)?,
        Binary::Eq => truth(cmp::eq(l, r)?),
        Binary::Ne => truth(cmp::neq(l, r)?),
        Binary::Lt => truth(cmp::lt(l, r)?),
        Binary::Le => truth(cmp::lt_eq(l, r)?),
        Binary::Gt => truth(cmp::gt(l, r)?),
        Binary::Ge => truth(cmp::gt_eq(l, r)?),
        Binary::Contains => truth(contains(l, r)?),
        Binary::StartsWith => truth(starts_with(l, r)?),
        Binary::EndsWith => truth(ends_with(l, r)?),
        Binary::And | Binary::Or | Binary::Coalesce => {
            let (left, right) = (left.rows(rows)?, right.rows(rows)?);
            let result = match op {
                Binary::And => truth(and_kleene(boolean(&left)?, boolean(&right)?)?),
                Binary::Or => truth(or_kleene(boolean(&left)?, boolean(&right)?)?),
                _ => zip(&is_null(&left)?, &right, &left)?,
            };
            return Ok(Value::Column(result));
        }
    };
    Ok(if same { Value::Same(result) } else { Value::Column(result) })
}

/// Both as one type: numbers as the wider of the two, a fraction where either has one or the operation gives one; a null as the other's.
fn alike(op: Binary, left: Value, right: Value) -> Result<(Value, Value), ArrowError> {
    let (l, r) = (left.data_type().clone(), right.data_type().clone());
    let numbers = l.is_numeric() && r.is_numeric();
    let common = if op == Binary::Div && numbers {
        if l == DataType::Float32 && r == DataType::Float32 { DataType::Float32 } else { DataType::Float64 }
    } else if l == r || r == DataType::Null {
        l
    } else if l == DataType::Null {
        r
    } else if numbers {
        // What is written in the expression takes the column's type, where its value has one there.
        match (&left, &right) {
            (Value::Column(_), Value::Same(v)) if fits(v, &l) => l,
            (Value::Same(v), Value::Column(_)) if fits(v, &r) => r,
            _ if l.is_floating() || r.is_floating() => DataType::Float64,
            _ => DataType::Int64,
        }
    } else if matches!((&left, &right), (Value::Column(_), Value::Same(_))) {
        l
    } else {
        r
    };
    Ok((left.map(|a| converted(a, &common))?, right.map(|a| converted(a, &common))?))
}

/// Whether a literal keeps its value as this type.
fn fits(value: &ArrayRef, data_type: &DataType) -> bool {
    let there = converted(value, data_type);
    let back = there.and_then(|there| converted(&there, value.data_type()));
    back.is_ok_and(|back| &back == value) || (data_type.is_floating() && value.data_type().is_floating())
}

/// Cast; a value that has none there is an error.
fn converted(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to {
        return Ok(array.clone());
    }
    cast_with_options(array, to, &CastOptions { safe: false, ..CastOptions::default() })
}

fn boolean(array: &ArrayRef) -> Result<&BooleanArray, ArrowError> {
    let type_ = array.data_type();
    array.as_boolean_opt().ok_or_else(|| {
        ArrowError::InvalidArgumentError(format!(
            "{type_} is neither true nor false; compare it with something"
        ))
    })
}

fn literal(value: &serde_json::Value) -> Result<ArrayRef> {
    Ok(match value {
        serde_json::Value::Null => new_null_array(&DataType::Null, 1),
        serde_json::Value::Bool(b) => Arc::new(BooleanArray::from(vec![*b])),
        serde_json::Value::String(s) => Arc::new(StringArray::from(vec![s.as_str()])),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(n), _) => Arc::new(Int64Array::from(vec![n])),
            (None, Some(n)) => Arc::new(Float64Array::from(vec![n])),
            (None, None) => return Err(Error::invalid(format!("{n} is no number of 64 bits"))),
        },
        other => return Err(Error::invalid(format!("{other} cannot stand in an expression"))),
    })
}

/// The types that an expression can be cast to, as Arrow's Python library names them.
fn named_type(name: &str) -> Result<DataType> {
    Ok(match name {
        "string" => DataType::Utf8,
        "large_string" => DataType::LargeUtf8,
        "binary" => DataType::Binary,
        "bool" => DataType::Boolean,
        "int8" => DataType::Int8,
        "int16" => DataType::Int16,
        "int32" => DataType::Int32,
        "int64" => DataType::Int64,
        "uint8" => DataType::UInt8,
        "uint16" => DataType::UInt16,
        "uint32" => DataType::UInt32,
        "uint64" => DataType::UInt64,
        "float" => DataType::Float32,
        "double" => DataType::Float64,
        "date32[day]" => DataType::Date32,
        other => {
            return Err(Error::invalid(format!(
                "an expression cannot be cast to {other}; use a map for that"
            )));
        }
    })
}

fn invalid(error: &ArrowError) -> Error {
    Error::invalid(error.to_string())
}

/// Columns made by expressions.
#[derive(Clone)]
pub(crate) struct Select(pub(crate) Arc<[(String, Expression)]>);

impl Select {
    /// The columns that come of these: what no rows give, and that says what any do.
    pub(crate) fn columns(&self, input: &Schema) -> Result<SchemaRef> {
        let none = RecordBatch::new_empty(Arc::new(input.clone()));
        let fields = self.0.iter().map(|(name, expression)| {
            let data_type = expression.evaluate(&none)?.data_type().clone();
            let data_type = if data_type == DataType::Null { DataType::Utf8 } else { data_type };
            Ok(match expression {
                Expression::Column { name: column } => input.field_with_name(column)?.clone().with_name(name),
                Expression::Mark { marks, .. } => {
                    Field::new(name, data_type, true).with_metadata(marks.clone())
                }
                _ => Field::new(name, data_type, true),
            })
        });
        Ok(Arc::new(Schema::new(fields.collect::<Result<Vec<_>>>()?)))
    }
}

impl Operator for Select {
    fn reads(&self) -> Option<Vec<String>> {
        let mut read = Vec::new();
        self.0.iter().for_each(|(_, expression)| expression.columns(&mut read));
        Some(read)
    }

    fn output(&self, input: &Schema) -> Result<SchemaRef> {
        self.columns(input)
    }

    fn create(&self) -> Result<Box<dyn Transform>> {
        Ok(Box::new(Selecting { select: self.clone(), columns: None }))
    }
}

struct Selecting {
    select: Select,
    columns: Option<SchemaRef>,
}

impl Transform for Selecting {
    fn process(&mut self, rows: RecordBatch, output: &mut Output) -> Result<()> {
        let columns = match &self.columns {
            Some(columns) => columns.clone(),
            None => self.columns.insert(self.select.columns(&rows.schema())?).clone(),
        };
        let made = self.select.0.iter().zip(columns.fields()).map(|((_, expression), field)| {
            converted(&expression.evaluate(&rows)?, field.data_type()).map_err(|e| invalid(&e))
        });
        let made = made.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        output.rows.push(RecordBatch::try_new_with_options(columns, made, &options)?);
        Ok(())
    }
}

/// The rows for which an expression is true; those for which it is unknown are left out, too.
#[derive(Clone)]
pub(crate) struct Keep(pub(crate) Arc<Expression>);

impl Operator for Keep {
    fn output(&self, input: &Schema) -> Result<SchemaRef> {
        let none = RecordBatch::new_empty(Arc::new(input.clone()));
        boolean(&self.0.evaluate(&none)?).map_err(|e| invalid(&e))?;
        Ok(Arc::new(input.clone()))
    }

    fn create(&self) -> Result<Box<dyn Transform>> {
        Ok(Box::new(self.clone()))
    }
}

impl Transform for Keep {
    fn process(&mut self, rows: RecordBatch, output: &mut Output) -> Result<()> {
        let truth = self.0.evaluate(&rows)?;
        let kept =
            arrow_select::filter::filter_record_batch(&rows, boolean(&truth).map_err(|e| invalid(&e))?)?;
        output.rows.push(kept);
        Ok(())
    }
}
