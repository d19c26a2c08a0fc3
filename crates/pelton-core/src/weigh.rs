//! What rows weigh, and what answers add to it: read from the columns that a declaration names.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Schema};

use crate::declaration::Weight;
use crate::error::{Error, Result};
use crate::service::MethodSpec;

/// No row weighs more: sums of weights stay numbers, whatever a column holds.
pub const HEAVIEST: f64 = 1e15;

/// The columns that hold weights.
#[derive(Clone, Debug)]
pub struct Scales {
    input: Option<String>,
    output: Option<String>,
}

/// Weights of some rows.
pub struct Weights {
    column: Option<ArrayRef>,
    otherwise: f64,
}

impl Scales {
    pub fn new(weight: &Weight) -> Self {
        Scales { input: weight.column.clone(), output: weight.output.clone() }
    }

    /// Refuses names that no method has as a column of numbers.
    pub fn check(&self, service: &str, methods: &[MethodSpec]) -> Result<()> {
        let check = |field: &str, name: &Option<String>, schemas: Vec<&Schema>| {
            let Some(name) = name else { return Ok(()) };
            let found: Vec<&DataType> =
                schemas.iter().filter_map(|s| s.field_with_name(name).ok()).map(|f| f.data_type()).collect();
            match found.iter().find(|t| !is_number(t)) {
                Some(other) => Err(Error::invalid(format!(
                    "service `{service}`: `weight.{field}` is `{name}`, a column of {other}; it must hold numbers"
                ))),
                None if found.is_empty() => Err(Error::invalid(format!(
                    "service `{service}`: `weight.{field}` is `{name}`, but no method has such a column"
                ))),
                None => Ok(()),
            }
        };
        check("column", &self.input, methods.iter().map(|m| m.input.as_ref()).collect())?;
        check("output", &self.output, methods.iter().map(|m| m.output.as_ref()).collect())
    }

    /// What each of these rows of arguments weighs: 1 without a column.
    pub fn input(&self, rows: &RecordBatch) -> Weights {
        Weights { column: column(rows, self.input.as_deref()), otherwise: 1.0 }
    }

    /// What each of these answers added: nothing without a column.
    pub fn output(&self, rows: &RecordBatch) -> Weights {
        Weights { column: column(rows, self.output.as_deref()), otherwise: 0.0 }
    }
}

fn column(rows: &RecordBatch, name: Option<&str>) -> Option<ArrayRef> {
    rows.column_by_name(name?).filter(|c| is_number(c.data_type())).cloned()
}

fn is_number(data_type: &DataType) -> bool {
    use DataType::{Float32, Float64, Int32, Int64, UInt8, UInt16, UInt32, UInt64};
    matches!(data_type, UInt8 | UInt16 | UInt32 | UInt64 | Int32 | Int64 | Float32 | Float64)
}

impl Weights {
    /// Never below zero nor above [`HEAVIEST`], always a number; what is missing or makes no sense counts as without a column.
    pub fn at(&self, row: usize) -> f64 {
        let value = self.column.as_ref().filter(|c| row < c.len() && c.is_valid(row)).map(|c| number(c, row));
        value.filter(|v| v.is_finite() && *v >= 0.0).map_or(self.otherwise, |v| v.min(HEAVIEST))
    }
}

fn number(column: &ArrayRef, row: usize) -> f64 {
    match column.data_type() {
        DataType::UInt8 => f64::from(column.as_primitive::<UInt8Type>().value(row)),
        DataType::UInt16 => f64::from(column.as_primitive::<UInt16Type>().value(row)),
        DataType::UInt32 => f64::from(column.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row) as f64,
        DataType::Int32 => f64::from(column.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row) as f64,
        DataType::Float32 => f64::from(column.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Float64Array, Int32Array};
    use arrow_schema::Field;

    use super::*;
    use crate::service::Cardinality;

    #[test]
    fn weights_come_from_their_column() {
        let weight = Weight { column: Some("tokens".into()), ..Weight::default() };
        let scales = Scales::new(&weight);
        let schema = Schema::new(vec![
            Field::new("tokens", DataType::Int32, true),
            Field::new("cost", DataType::Float64, false),
        ]);
        let tokens = Arc::new(Int32Array::from(vec![Some(7), None, Some(-1)]));
        let cost = Arc::new(Float64Array::from(vec![0.5, f64::NAN, 2.0]));
        let rows = RecordBatch::try_new(Arc::new(schema.clone()), vec![tokens, cost]).unwrap();
        let weights = scales.input(&rows);
        assert_eq!([weights.at(0), weights.at(1), weights.at(2), weights.at(9)], [7.0, 1.0, 1.0, 1.0]);
        assert_eq!(scales.output(&rows).at(0), 0.0);
        let cost = Scales::new(&Weight { column: Some("cost".into()), ..Weight::default() }).input(&rows);
        assert_eq!([cost.at(0), cost.at(1)], [0.5, 1.0]);

        let text = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, false)]));
        let method = |input: Arc<Schema>| MethodSpec {
            name: "m".into(),
            input,
            output: text.clone(),
            cardinality: Cardinality::One,
            concurrency: None,
        };
        assert!(scales.check("s", &[method(Arc::new(schema))]).is_ok());
        let refused = scales.check("s", &[method(text.clone())]).unwrap_err();
        assert!(refused.message().contains("no method has such a column"), "{refused}");
        let refused = Scales::new(&Weight { column: Some("text".into()), ..Weight::default() })
            .check("s", &[method(text.clone())])
            .unwrap_err();
        assert!(refused.message().contains("it must hold numbers"), "{refused}");
    }
}
