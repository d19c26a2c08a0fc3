//! What the Open Inference Protocol's two forms share: columns out, tensors in, by name.

use arrow_array::RecordBatch;
use pelton_core::Result;

use super::Call;
use crate::failure;
use crate::mapping::Tensors;
use crate::state::Failure;
use crate::tensor::{self, Tensor};

/// An input: its tensor's name and data type, and what is in it.
pub(super) struct Input<'a> {
    pub(super) name: &'a str,
    pub(super) datatype: &'static str,
    pub(super) tensor: Tensor,
}

pub(super) fn inputs<'a>(call: &Call<'_>, tensors: &'a Tensors) -> Result<Vec<Input<'a>>, Failure> {
    let columns = call.arguments.columns().iter().zip(call.spec.input.fields());
    columns
        .zip(&tensors.inputs)
        .map(|((column, field), name)| {
            let tensor = tensor::of_column(field.name(), column.as_ref());
            let tensor = tensor.map_err(|e| failure::invalid(e.to_string(), true))?;
            let datatype = tensor::datatype(field.data_type())
                .ok_or_else(|| failure::invalid(format!("column `{}` is no tensor", field.name()), false))?;
            Ok(Input { name, datatype, tensor })
        })
        .collect()
}

/// The method's rows, from the tensors that came.
pub(super) fn rows(
    call: &Call<'_>,
    tensors: &Tensors,
    mut came: Vec<(String, Result<Tensor>)>,
) -> Result<RecordBatch, Failure> {
    let rows = call.arguments.num_rows();
    let mut columns = Vec::new();
    for (field, name) in call.spec.output.fields().iter().zip(&tensors.outputs) {
        let Some(at) = came.iter().position(|(given, _)| given == name) else {
            let names: Vec<&str> = came.iter().map(|(name, _)| name.as_str()).collect();
            return Err(failure::nonsense(format!(
                "the answer has no tensor `{name}`; it has: {}; say in `remote.methods.{}.tensors` what column `{}` is called there",
                names.join(", "),
                call.spec.name,
                field.name()
            )));
        };
        let (_, tensor) = came.swap_remove(at);
        let column = tensor.and_then(|t| tensor::to_column(t, field.data_type(), rows));
        columns.push(column.map_err(|e| failure::nonsense(format!("tensor `{name}`: {e}")))?);
    }
    RecordBatch::try_new(call.spec.output.clone(), columns).map_err(|e| failure::nonsense(e.to_string()))
}
