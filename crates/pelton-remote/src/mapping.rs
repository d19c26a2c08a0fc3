//! How a service's methods are said in a protocol: checked when a job is put together, so that nothing of it can be wrong later.

use arrow_schema::{DataType, Schema};
use pelton_core::declaration::Declaration;
use pelton_core::remote::{Protocol, RemoteMethod, Route};
use pelton_core::service::{Cardinality, MethodSpec, show_columns};
use pelton_core::weigh::Scales;
use pelton_core::{Error, Result};
use serde_json::{Map, Value};

use crate::tensor;

/// One method in a protocol's words.
#[derive(Clone, Debug)]
pub(crate) enum Mapped {
    Embeddings { extra: Map<String, Value> },
    Chat { system: Option<String>, extra: Map<String, Value> },
    Tensors(Tensors),
}

#[derive(Clone, Debug)]
pub(crate) struct Tensors {
    pub(crate) model: String,
    pub(crate) version: Option<String>,
    /// Tensors' names, one a column.
    pub(crate) inputs: Vec<String>,
    pub(crate) outputs: Vec<String>,
    pub(crate) parameters: Map<String, Value>,
}

/// Says whether the methods of a service can be called as its declaration of kind `remote` has it, and what would work if not.
pub fn check(declaration: &Declaration, methods: &[MethodSpec]) -> Result<()> {
    mapped(declaration, methods).map(|_| ())
}

/// Each method in the protocol's words, and how many rows a call of it may have.
pub(crate) fn mapped(declaration: &Declaration, methods: &[MethodSpec]) -> Result<Vec<(Mapped, usize)>> {
    let name = &declaration.name;
    let remote = declaration
        .remote
        .as_ref()
        .ok_or_else(|| Error::internal(format!("service `{name}` is not of kind `remote`")))?;
    if let Some(unknown) = remote.methods.keys().find(|m| methods.iter().all(|spec| spec.name != **m)) {
        let names: Vec<&str> = methods.iter().map(|m| m.name.as_str()).collect();
        return Err(Error::invalid(format!(
            "service `{name}`: `remote.methods.{unknown}` is for a method that there is not; there are: {}",
            names.join(", ")
        )));
    }
    Scales::new(&declaration.weight).check(name, methods)?;
    let rows = declaration.batch.rows as usize;
    let plain = RemoteMethod::default();
    methods
        .iter()
        .map(|spec| {
            let own = remote.methods.get(&spec.name).unwrap_or(&plain);
            let mapped = match remote.protocol {
                Protocol::OpenAi => open_ai(spec, own, rows),
                Protocol::OipHttp | Protocol::OipGrpc => {
                    let model = own.model.as_ref().unwrap_or(&remote.model);
                    tensors(spec, own, model, remote.version.as_ref(), rows)
                }
            };
            mapped.map_err(|e| {
                let signature =
                    format!("({}) -> ({})", show_columns(&spec.input), show_columns(&spec.output));
                e.context(format_args!(
                    "service `{name}`: method `{}{signature}` over protocol `{}`",
                    spec.name, remote.protocol
                ))
            })
        })
        .collect()
}

fn open_ai(spec: &MethodSpec, own: &RemoteMethod, rows: usize) -> Result<(Mapped, usize)> {
    let text = |schema: &Schema| matches!(single(schema), Some(DataType::Utf8));
    let vector = single(&spec.output).is_some_and(is_vector);
    let one = spec.cardinality == Cardinality::One;
    let embeddings = text(&spec.input) && vector && one;
    let chat = text(&spec.input) && text(&spec.output);
    let route = own.route.or(if embeddings {
        Some(Route::Embeddings)
    } else if chat {
        Some(Route::Chat)
    } else {
        None
    });
    let extra = own.extra.clone();
    match route {
        Some(Route::Embeddings) if own.system.is_some() => {
            Err(Error::invalid("`system` is for route `chat`, and this is `embeddings`; leave it out"))
        }
        Some(Route::Embeddings) if embeddings => Ok((Mapped::Embeddings { extra }, rows)),
        Some(Route::Chat) if chat => Ok((Mapped::Chat { system: own.system.clone(), extra }, 1)),
        _ => Err(Error::invalid(
            "cannot be called: `embeddings` takes one Utf8 column and gives one column of lists of Float32 or Float64, a row for each; `chat` takes \
             one Utf8 column and gives one of Utf8, one row or a stream of parts; other columns need a protocol of tensors (`oip-http`, `oip-grpc`)",
        )),
    }
}

fn tensors(
    spec: &MethodSpec,
    own: &RemoteMethod,
    model: &str,
    version: Option<&String>,
    rows: usize,
) -> Result<(Mapped, usize)> {
    if spec.cardinality == Cardinality::Many {
        return Err(Error::invalid(
            "cannot be called: this protocol gives one row for each, and the method is a streaming one",
        ));
    }
    let columns = || spec.input.fields().iter().chain(spec.output.fields());
    if let Some(field) = columns().find(|f| tensor::datatype(f.data_type()).is_none()) {
        return Err(Error::invalid(format!(
            "cannot be called: column `{}` is {}, and a tensor holds booleans, integers, floats, texts or bytes, or lists of them of one length",
            field.name(),
            field.data_type()
        )));
    }
    if let Some(column) = own.tensors.keys().find(|c| columns().all(|f| f.name() != *c)) {
        return Err(Error::invalid(format!(
            "`tensors.{column}` is for a column that the method does not have"
        )));
    }
    let scalar = |v: &Value| v.is_string() || v.is_boolean() || v.is_i64();
    if let Some((key, _)) = own.extra.iter().find(|(_, v)| !scalar(v)) {
        return Err(Error::invalid(format!(
            "`extra.{key}`: a parameter of this protocol is a text, a whole number, true or false"
        )));
    }
    let names = |schema: &Schema| -> Vec<String> {
        schema.fields().iter().map(|f| own.tensors.get(f.name()).unwrap_or(f.name()).clone()).collect()
    };
    // Lists of different lengths make no tensor together.
    let ragged = spec.input.fields().iter().any(|f| matches!(f.data_type(), DataType::List(_)));
    let tensors = Tensors {
        model: model.to_owned(),
        version: version.cloned(),
        inputs: names(&spec.input),
        outputs: names(&spec.output),
        parameters: own.extra.clone(),
    };
    Ok((Mapped::Tensors(tensors), if ragged { 1 } else { rows }))
}

fn single(schema: &Schema) -> Option<&DataType> {
    match &schema.fields()[..] {
        [field] => Some(field.data_type()),
        _ => None,
    }
}

fn is_vector(column: &DataType) -> bool {
    match column {
        DataType::List(inner) | DataType::FixedSizeList(inner, _) => {
            matches!(inner.data_type(), DataType::Float32 | DataType::Float64)
        }
        _ => false,
    }
}

/// How a method is called, for people: `embeddings, up to 32 rows a call`.
pub fn explain(declaration: &Declaration, methods: &[MethodSpec]) -> Result<Vec<String>> {
    let all = mapped(declaration, methods)?;
    let described = all.iter().map(|(mapped, rows)| {
        let how = match mapped {
            Mapped::Embeddings { .. } => "embeddings".to_owned(),
            Mapped::Chat { .. } => "chat completions".to_owned(),
            Mapped::Tensors(t) => {
                format!("tensors of model `{}`: {} -> {}", t.model, t.inputs.join(", "), t.outputs.join(", "))
            }
        };
        if *rows == 1 { format!("{how}; a call a row") } else { format!("{how}; up to {rows} rows a call") }
    });
    Ok(described.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use arrow_schema::Field;

    fn schema(columns: &[(&str, DataType)]) -> Arc<Schema> {
        let fields: Vec<Field> = columns.iter().map(|(n, t)| Field::new(*n, t.clone(), false)).collect();
        Arc::new(Schema::new(fields))
    }

    fn method(
        input: &[(&str, DataType)],
        output: &[(&str, DataType)],
        cardinality: Cardinality,
    ) -> MethodSpec {
        MethodSpec {
            name: "m".into(),
            input: schema(input),
            output: schema(output),
            cardinality,
            concurrency: None,
        }
    }

    /// How the method is called, or the message of the refusal.
    fn explained(protocol: &str, more: &str, spec: MethodSpec) -> String {
        let toml = format!(
            "name = \"s\"\nkind = \"remote\"\n[remote]\nprotocol = \"{protocol}\"\nurls = [\"http://a\"]\nmodel = \"x\"\n{more}"
        );
        let declaration = Declaration::from_toml(&toml, "t").unwrap();
        explain(&declaration, &[spec]).map_or_else(|e| e.to_string(), |lines| lines.join("\n"))
    }

    #[test]
    fn the_columns_say_how_a_method_is_called_or_why_it_cannot_be() {
        use Cardinality::{Many, One};
        use DataType::{Float32, Int32, Utf8};
        let vector = DataType::new_fixed_size_list(Float32, 4, false);
        let list = DataType::new_list(Float32, false);
        let text = [("text", Utf8)];
        for (protocol, more, spec, expected) in [
            ("openai", "", method(&text, &[("v", vector.clone())], One), "embeddings; up to 32 rows"),
            ("openai", "", method(&text, &[("v", list.clone())], One), "embeddings"),
            ("openai", "", method(&text, &[("answer", Utf8)], One), "chat completions; a call a row"),
            ("openai", "", method(&text, &[("answer", Utf8)], Many), "chat completions"),
            ("openai", "", method(&text, &[("n", Int32)], One), "other columns need a protocol of tensors"),
            ("openai", "", method(&text, &[("v", vector.clone())], Many), "cannot be called"),
            (
                "openai",
                "[remote.methods.m]\nroute = \"chat\"",
                method(&text, &[("v", vector.clone())], One),
                "cannot be called",
            ),
            (
                "openai",
                "[remote.methods.m]\nsystem = \"x\"",
                method(&text, &[("v", vector.clone())], One),
                "`system`",
            ),
            (
                "openai",
                "[remote.methods.n]\nsystem = \"x\"",
                method(&text, &[("a", Utf8)], One),
                "there are: m",
            ),
            (
                "oip-http",
                "",
                method(&[("x", vector.clone())], &[("y", Int32)], One),
                "`x`: x -> y; up to 32 rows",
            ),
            ("oip-grpc", "", method(&[("x", list)], &[("y", Int32)], One), "a call a row"),
            (
                "oip-http",
                "[remote.methods.m.tensors]\ny = \"out\"",
                method(&[("x", vector)], &[("y", Int32)], One),
                "x -> out",
            ),
            (
                "oip-http",
                "[remote.methods.m.tensors]\nz = \"out\"",
                method(&[("x", Int32)], &[("y", Int32)], One),
                "`tensors.z`",
            ),
            (
                "oip-http",
                "[remote.methods.m.extra]\nz = [1]",
                method(&[("x", Int32)], &[("y", Int32)], One),
                "`extra.z`",
            ),
            ("oip-http", "", method(&[("x", Int32)], &[("y", Int32)], Many), "streaming"),
            (
                "oip-http",
                "",
                method(&[("x", DataType::Date32)], &[("y", Int32)], One),
                "column `x` is Date32",
            ),
        ] {
            let found = explained(protocol, more, spec);
            assert!(found.contains(expected), "{protocol} {more}: {found}");
        }
    }
}
