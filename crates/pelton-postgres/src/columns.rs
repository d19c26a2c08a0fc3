//! Which column of a stream goes into which column of the table.

use arrow_schema::{DataType, Schema};
use pelton_core::{Error, Result};

use crate::sql::{GENERATION, PART, check_name};

/// A type of the server's that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Text,
    Jsonb,
    Bytea,
    Date,
    Timestamp,
    Timestamptz,
}

use Element::*;

impl Element {
    fn named(kind: &str) -> Option<Element> {
        Some(match kind {
            "bool" => Bool,
            "int2" => Int2,
            "int4" => Int4,
            "int8" => Int8,
            "float4" => Float4,
            "float8" => Float8,
            "text" | "varchar" | "bpchar" | "json" => Text,
            "jsonb" => Jsonb,
            "bytea" => Bytea,
            "date" => Date,
            "timestamp" => Timestamp,
            "timestamptz" => Timestamptz,
            _ => return None,
        })
    }

    /// As it stands in a declaration.
    fn sql(self) -> &'static str {
        match self {
            Bool => "boolean",
            Int2 => "smallint",
            Int4 => "integer",
            Int8 => "bigint",
            Float4 => "real",
            Float8 => "double precision",
            Text => "text",
            Jsonb => "jsonb",
            Bytea => "bytea",
            Date => "date",
            Timestamp => "timestamp",
            Timestamptz => "timestamp with time zone",
        }
    }
}

/// How the elements of a value stand together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    One,
    /// Of elements of the type with this oid.
    Array(u32),
    /// pgvector's.
    Vector,
}

/// A column of the stream with what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) element: Element,
    pub(crate) shape: Shape,
}

/// A column of a table, as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    /// The catalog's short name: `int8`, `_text`.
    pub(crate) kind: String,
    /// Of an array's elements, else 0.
    pub(crate) element: u32,
    /// As it stands in a declaration: `character varying(20)`.
    pub(crate) sql: String,
    pub(crate) required: bool,
    /// Has a value if none is given.
    pub(crate) filled: bool,
    /// Computed by the server, and not to be written.
    pub(crate) computed: bool,
}

/// Refuses what no table could take, without asking the server.
pub(crate) fn check(input: &Schema, part_column: Option<&str>) -> Result<()> {
    if input.fields().is_empty() {
        return Err(Error::invalid("there are no columns to write"));
    }
    for (i, field) in input.fields().iter().enumerate() {
        let name = field.name();
        check_name(name)?;
        let refused = |why: String| Err(Error::invalid(format!("column `{name}` {why}")));
        if input.fields()[..i].iter().any(|f| f.name() == name) {
            return refused("comes twice; rename one in a map before the sink".to_owned());
        }
        if name == PART || name == GENERATION || Some(name.as_str()) == part_column {
            return refused(
                "has a name that the sink needs for itself; rename it in a map before the sink".to_owned(),
            );
        }
        if natural(field.data_type()).is_none() {
            return refused(format!(
                "is of type {}, which this sink does not write; it writes booleans, integers, floats, text, binary, \
                 dates, timestamps, and lists of them: convert it in a map before the sink",
                field.data_type()
            ));
        }
    }
    Ok(())
}

/// The declaration of a table that takes these columns.
pub(crate) fn declaration(input: &Schema, part_column: Option<&str>) -> String {
    let mut columns: Vec<String> = input
        .fields()
        .iter()
        .filter_map(|field| {
            let (element, list) = natural(field.data_type())?;
            let required = if field.is_nullable() { "" } else { " not null" };
            let list = if list { "[]" } else { "" };
            Some(format!("{} {}{list}{required}", crate::sql::quoted(field.name()), element.sql()))
        })
        .collect();
    columns.extend(part_column.map(|name| format!("{} text", crate::sql::quoted(name))));
    columns.join(", ")
}

/// Each column of the stream with its column of the table. Refuses a table that cannot take the rows.
pub(crate) fn fit(input: &Schema, table: &[Found], part_column: Option<&str>) -> Result<Vec<Column>> {
    for found in table.iter().filter(|f| f.required && !f.filled) {
        if input.column_with_name(&found.name).is_none() && Some(found.name.as_str()) != part_column {
            return Err(Error::invalid(format!(
                "its column `{}` must not be null, has no default, and does not come with the rows: give it a default, \
                 or add it to the rows",
                found.name
            )));
        }
    }
    if let Some(name) = part_column
        && !table.iter().any(|f| f.name == name && Element::named(&f.kind) == Some(Text))
    {
        return Err(Error::invalid(format!(
            "it has no text column `{name}`, which is to get each row's part"
        )));
    }
    input.fields().iter().map(|field| column(field.name(), field.data_type(), table)).collect()
}

fn column(name: &str, kind: &DataType, table: &[Found]) -> Result<Column> {
    let (natural, list) =
        natural(kind).ok_or_else(|| Error::internal(format!("column `{name}` was not checked")))?;
    let wanted = format!("{}{}", natural.sql(), if list { "[]" } else { "" });
    let Some(found) = table.iter().find(|f| f.name == name) else {
        return Err(Error::invalid(format!(
            "it has no column `{name}`: add it (`{} {wanted}`), or drop it from the rows in a map before the sink",
            crate::sql::quoted(name)
        )));
    };
    if found.computed {
        return Err(Error::invalid(format!(
            "its column `{name}` is computed by the server and cannot be written: drop it from the rows in a map before \
             the sink"
        )));
    }
    let inner = list_of(kind).unwrap_or(kind);
    let (element, shape) = match found.kind.strip_prefix('_') {
        Some(of) if list => (Element::named(of), Shape::Array(found.element)),
        None if list && found.kind == "vector" && *inner == DataType::Float32 => {
            (Some(Float4), Shape::Vector)
        }
        None if !list => (Element::named(&found.kind), Shape::One),
        _ => (None, Shape::One),
    };
    match element.filter(|element| holds(*element, inner)) {
        Some(element) => Ok(Column { name: name.to_owned(), element, shape }),
        None => Err(Error::invalid(format!(
            "its column `{name}` is of type {}, which cannot take {kind}: make it {wanted}",
            found.sql
        ))),
    }
}

/// What a list's elements are.
pub(crate) fn list_of(kind: &DataType) -> Option<&DataType> {
    match kind {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            Some(field.data_type())
        }
        _ => None,
    }
}

/// What the server calls it, and whether it is a list of that.
fn natural(kind: &DataType) -> Option<(Element, bool)> {
    if let Some(inner) = list_of(kind) {
        return one(inner).map(|element| (element, true));
    }
    one(kind).map(|element| (element, false))
}

fn one(kind: &DataType) -> Option<Element> {
    Some(match kind {
        DataType::Boolean => Bool,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => Int2,
        DataType::Int32 | DataType::UInt16 => Int4,
        // Numbers beyond the signed ones are refused where they come.
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => Int8,
        DataType::Float32 => Float4,
        DataType::Float64 => Float8,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Text,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            Bytea
        }
        DataType::Date32 => Date,
        DataType::Timestamp(_, None) => Timestamp,
        DataType::Timestamp(_, Some(_)) => Timestamptz,
        _ => return None,
    })
}

/// Whether a column of this type takes all such values.
fn holds(element: Element, kind: &DataType) -> bool {
    let Some(natural) = one(kind) else { return false };
    let wider: &[Element] = match natural {
        Int2 => &[Int4, Int8],
        Int4 => &[Int8],
        Float4 => &[Float8],
        Text => &[Jsonb],
        _ => &[],
    };
    natural == element || wider.contains(&element)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_schema::{Field, TimeUnit};
    use std::sync::Arc;

    fn list(kind: DataType) -> DataType {
        DataType::List(Arc::new(Field::new("item", kind, true)))
    }

    fn schema(kind: DataType) -> Schema {
        Schema::new(vec![Field::new("c", kind, true)])
    }

    fn found(kind: &str) -> Found {
        Found {
            name: "c".into(),
            kind: kind.into(),
            element: 7,
            sql: kind.into(),
            required: false,
            filled: false,
            computed: false,
        }
    }

    #[test]
    fn a_column_goes_where_all_its_values_have_room() {
        let utc = || Some("UTC".into());
        for (kind, yes, no) in [
            (DataType::Boolean, &["bool"][..], &["int2", "text"][..]),
            (DataType::Int8, &["int2", "int4", "int8"], &["bool", "float8"]),
            (DataType::Int32, &["int4", "int8"], &["int2", "_int4"]),
            (DataType::UInt32, &["int8"], &["int4"]),
            (DataType::UInt64, &["int8"], &["numeric"]),
            (DataType::Float32, &["float4", "float8"], &["int8", "numeric"]),
            (DataType::Float64, &["float8"], &["float4"]),
            (DataType::Utf8, &["text", "varchar", "json", "jsonb"], &["bytea", "uuid"]),
            (DataType::BinaryView, &["bytea"], &["text"]),
            (DataType::Date32, &["date"], &["timestamp"]),
            (DataType::Timestamp(TimeUnit::Second, None), &["timestamp"], &["timestamptz"]),
            (DataType::Timestamp(TimeUnit::Nanosecond, utc()), &["timestamptz"], &["timestamp"]),
            (list(DataType::Float32), &["_float4", "_float8", "vector"], &["float4", "_int4"]),
            (list(DataType::Float64), &["_float8"], &["vector", "_float4"]),
            (list(DataType::Utf8), &["_text", "_varchar"], &["text"]),
        ] {
            let schema = schema(kind);
            check(&schema, None).unwrap();
            for name in yes {
                fit(&schema, &[found(name)], None).unwrap();
            }
            for name in no {
                let error = fit(&schema, &[found(name)], None).unwrap_err().to_string();
                assert!(error.contains("column `c`") && error.contains("make it"), "{error}");
            }
        }
    }

    #[test]
    fn what_is_not_written_is_refused_by_name() {
        let of = DataType::Struct(vec![Field::new("x", DataType::Int8, true)].into());
        for kind in
            [of.clone(), list(of), list(list(DataType::Int8)), DataType::Decimal128(10, 2), DataType::Null]
        {
            let error = check(&schema(kind), None).unwrap_err().to_string();
            assert!(error.contains("column `c` is of type"), "{error}");
        }
        let twice =
            Schema::new(vec![Field::new("a", DataType::Int8, true), Field::new("a", DataType::Utf8, true)]);
        assert!(check(&twice, None).unwrap_err().to_string().contains("comes twice"));
        assert!(
            check(&schema(DataType::Int8), Some("c")).unwrap_err().to_string().contains("needs for itself")
        );
        assert!(check(&Schema::empty(), None).unwrap_err().to_string().contains("no columns"));
    }

    #[test]
    fn a_table_that_cannot_take_the_rows_is_refused() {
        let required = |name: &str| Found { name: name.into(), required: true, ..found("int8") };
        let rows = schema(DataType::Int64);
        for (table, part, says) in [
            (vec![], None, "no column `c`"),
            (vec![Found { computed: true, ..found("int8") }], None, "computed by the server"),
            (vec![found("int8"), required("d")], None, "`d` must not be null"),
            (vec![found("int8")], Some("p"), "no text column `p`"),
        ] {
            let error = fit(&rows, &table, part).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let filled = Found { filled: true, ..required("d") };
        fit(&rows, &[required("c"), filled], None).unwrap();
        assert_eq!(declaration(&rows, Some("p")), r#""c" bigint, "p" text"#);
    }
}
