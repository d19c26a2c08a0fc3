//! What a schema asks of a message: which columns and buffers it has, and how long they are at least.
//!
//! arrow-ipc validates what it builds (offsets, UTF-8, counts), but panics where a message lacks what it is built from. What it takes for granted is
//! checked here, in the order in which it reads.

use arrow_ipc::{MetadataVersion, RecordBatch};
use arrow_schema::{DataType, Schema, UnionMode};

use crate::frame::MAX_REQUESTS;

/// Arrow's own rule for where buffers begin.
const ALIGNMENT: i64 = 8;

/// Says what contradicts: `data` is how many bytes the message's buffers lie in.
pub(crate) fn check(
    batch: &RecordBatch<'_>,
    version: MetadataVersion,
    schema: &Schema,
    data: usize,
) -> Result<(), &'static str> {
    // Unions have another form in older versions.
    if version != MetadataVersion::V5 {
        return Err("it is of another metadata version than 5");
    }
    // One bit a row is the least that a column takes, unless it takes nothing.
    let most = (data as u64).saturating_mul(8).max(MAX_REQUESTS);
    let length = |n: i64| u64::try_from(n).ok().filter(|n| *n <= most);
    let rows = length(batch.length()).ok_or("it has an impossible number of rows")?;
    let mut columns = Vec::new();
    for node in batch.nodes().ok_or("it lists no columns")? {
        let rows = length(node.length()).ok_or("a column has an impossible length")?;
        let nulls = length(node.null_count()).filter(|nulls| *nulls <= rows);
        columns.push(Column { rows, nulls: nulls.ok_or("a column has an impossible number of nulls")? });
    }
    let mut buffers = Vec::new();
    for buffer in batch.buffers().ok_or("it lists no buffers")? {
        let (offset, length) = (buffer.offset(), buffer.length());
        let end = usize::try_from(offset).ok().zip(usize::try_from(length).ok());
        let inside =
            end.and_then(|(offset, length)| offset.checked_add(length)).is_some_and(|end| end <= data);
        if !inside {
            return Err("a buffer lies outside its data");
        }
        if offset % ALIGNMENT != 0 && length > 0 {
            return Err("a buffer does not begin at a multiple of 8");
        }
        buffers.push(length as u64);
    }
    let variadic: Vec<i64> = batch.variadicBufferCounts().into_iter().flatten().collect();
    let mut walk = Walk { columns: columns.iter(), buffers: buffers.iter(), variadic: variadic.iter() };
    for field in schema.fields() {
        if walk.column(field.data_type())? != rows {
            return Err("columns and rows disagree");
        }
    }
    if walk.columns.len() + walk.buffers.len() + walk.variadic.len() > 0 {
        return Err("it has more columns or buffers than the schema");
    }
    Ok(())
}

struct Column {
    rows: u64,
    nulls: u64,
}

/// What has not been read yet.
struct Walk<'a> {
    columns: std::slice::Iter<'a, Column>,
    /// Their lengths.
    buffers: std::slice::Iter<'a, u64>,
    variadic: std::slice::Iter<'a, i64>,
}

impl Walk<'_> {
    /// Reads a column of this type, and says how long it is.
    fn column(&mut self, data_type: &DataType) -> Result<u64, &'static str> {
        use DataType::*;
        let &Column { rows, nulls } = self.columns.next().ok_or("it has fewer columns than the schema")?;
        let has_validity = !matches!(data_type, Null | RunEndEncoded(..) | Union(..));
        if has_validity {
            let validity = self.buffer(0)?;
            if nulls > 0 && validity.saturating_mul(8) < rows {
                return Err("a column has nulls, and no room for them");
            }
        }
        match data_type {
            Null => {
                if nulls != rows {
                    return Err("a column of nothing has something");
                }
            }
            Boolean => {
                self.buffer(rows.div_ceil(8))?;
            }
            Utf8 | Binary => {
                self.offsets(rows, 4)?;
                self.buffer(0)?;
            }
            LargeUtf8 | LargeBinary => {
                self.offsets(rows, 8)?;
                self.buffer(0)?;
            }
            Utf8View | BinaryView => {
                self.whole(rows, 16)?;
                let said = self.variadic.next().and_then(|n| u64::try_from(*n).ok());
                for _ in 0..said.ok_or("a column of views does not say of how many buffers")? {
                    self.buffer(0)?;
                }
            }
            FixedSizeBinary(size) => {
                self.buffer(rows.saturating_mul(u64::try_from(*size).unwrap_or(0)))?;
            }
            List(item) | Map(item, _) => {
                self.offsets(rows, 4)?;
                self.column(item.data_type())?;
            }
            LargeList(item) => {
                self.offsets(rows, 8)?;
                self.column(item.data_type())?;
            }
            ListView(item) => {
                self.whole(rows, 4)?;
                self.whole(rows, 4)?;
                self.column(item.data_type())?;
            }
            LargeListView(item) => {
                self.whole(rows, 8)?;
                self.whole(rows, 8)?;
                self.column(item.data_type())?;
            }
            FixedSizeList(item, size) => {
                let items = self.column(item.data_type())?;
                if items < rows.saturating_mul(u64::try_from(*size).unwrap_or(0)) {
                    return Err("a list has fewer items than rows need");
                }
            }
            Struct(fields) => {
                for field in fields {
                    if self.column(field.data_type())? != rows {
                        return Err("the parts of a struct have different lengths");
                    }
                }
            }
            RunEndEncoded(ends, values) => {
                let runs = self.column(ends.data_type())?;
                if self.column(values.data_type())? != runs {
                    return Err("runs and their values disagree");
                }
            }
            Union(fields, mode) => {
                self.buffer(rows)?;
                if *mode == UnionMode::Dense {
                    self.whole(rows, 4)?;
                }
                for (_, field) in fields.iter() {
                    self.column(field.data_type())?;
                }
            }
            Dictionary(..) => return Err("it is dictionary-encoded"),
            other => match other.primitive_width() {
                Some(bytes) => {
                    self.whole(rows, bytes as u64)?;
                }
                None => return Err("it has a column of a type that does not travel"),
            },
        }
        Ok(rows)
    }

    /// One more offset than rows. None at all is how some write a column without rows.
    fn offsets(&mut self, rows: u64, each: u64) -> Result<(), &'static str> {
        match self.whole(0, each)? {
            0 if rows == 0 => Ok(()),
            length if length >= (rows + 1) * each => Ok(()),
            _ => Err("a column has fewer offsets than rows"),
        }
    }

    /// The next buffer's length: of at least so many items of a size, and no part of one.
    fn whole(&mut self, items: u64, each: u64) -> Result<u64, &'static str> {
        let length = self.buffer(items.saturating_mul(each))?;
        if length % each != 0 {
            return Err("a buffer ends in the middle of an item");
        }
        Ok(length)
    }

    /// The next buffer's length.
    fn buffer(&mut self, at_least: u64) -> Result<u64, &'static str> {
        let length = *self.buffers.next().ok_or("it has fewer buffers than the schema")?;
        if length < at_least {
            return Err("a buffer is shorter than its column");
        }
        Ok(length)
    }
}
