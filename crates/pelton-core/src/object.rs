//! References to objects: large payloads that stay where they are, and are read where they are needed.
//!
//! A reference says which bytes are meant: where the object is, which range of it, and which version. It is a column like any other
//! ([`field`], [`column`], [`Objects`]), of the Arrow extension type [`NAME`], so it passes through calls, checkpoints and files.
//! No I/O here: what reads is the crate `pelton-objects`.

pub mod media;
pub mod uri;

use std::fmt;
use std::sync::Arc;

use arrow_array::builder::{StringBuilder, UInt64Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray, StructArray, UInt64Array};
use arrow_schema::extension::ExtensionType;
use arrow_schema::{ArrowError, DataType, Field, Fields};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The name of the Arrow extension type.
pub const NAME: &str = "pelton.object";

/// Most bytes of a uri.
const LONGEST_URI: usize = 4096;
/// Most bytes of a version, and of a media type.
const LONGEST_WORD: usize = 1024;

/// Which bytes are meant. Always valid: checked by its constructors, and where it is read from JSON.
///
/// Written as JSON it has all five fields, as a row of JSON lines has.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct ObjectRef {
    uri: String,
    offset: Option<u64>,
    length: Option<u64>,
    version: Option<String>,
    media_type: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    uri: String,
    #[serde(default)]
    offset: Option<u64>,
    #[serde(default)]
    length: Option<u64>,
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    media_type: Option<String>,
}

impl ObjectRef {
    /// The whole object at a uri, whatever its version: `file:///FOLDER/FILE`, `s3://BUCKET/KEY`, `https://HOST/PATH`, with what is no
    /// plain character written as `%20` ([`uri::encode`]). A uri with a user, a query or a fragment is refused: a key may be in it, and a
    /// reference is stored and shown.
    pub fn new(uri: impl Into<String>) -> Result<ObjectRef> {
        let uri = uri.into();
        uri::check(&uri, LONGEST_URI)?;
        Ok(ObjectRef { uri, offset: None, length: None, version: None, media_type: None })
    }

    /// So many bytes from an offset on; without a length, all that follow.
    pub fn with_range(self, offset: u64, length: impl Into<Option<u64>>) -> Result<ObjectRef> {
        let length = length.into();
        self.ranged(Some(offset), length)
    }

    fn ranged(self, offset: Option<u64>, length: Option<u64>) -> Result<ObjectRef> {
        if length == Some(0) || length.is_some_and(|n| offset.unwrap_or(0).checked_add(n).is_none()) {
            return Err(Error::invalid(format!(
                "object {}: a range of {} bytes from {} on is not possible; give at least one byte, or no length",
                self.uri,
                length.unwrap_or(0),
                offset.unwrap_or(0)
            )));
        }
        Ok(ObjectRef { offset, length, ..self })
    }

    /// This version and no other: an ETag with its quotes, the id of a version in S3, or `SIZE-NANOSECONDS` of a file (its size and when
    /// it was modified, since 1970).
    pub fn with_version(self, version: impl Into<String>) -> Result<ObjectRef> {
        let version = self.word("version", version.into())?;
        Ok(ObjectRef { version: Some(version), ..self })
    }

    /// What is in it, as `image/png`.
    pub fn with_media_type(self, media_type: impl Into<String>) -> Result<ObjectRef> {
        let media_type = self.word("media type", media_type.into())?;
        Ok(ObjectRef { media_type: Some(media_type), ..self })
    }

    fn word(&self, what: &str, word: String) -> Result<String> {
        if word.is_empty() || word.len() > LONGEST_WORD || word.chars().any(char::is_control) {
            return Err(Error::invalid(format!(
                "object {}: its {what} has {} bytes or characters that cannot be shown; 1 to {LONGEST_WORD} bytes are possible",
                self.uri,
                word.len()
            )));
        }
        Ok(word)
    }

    pub fn uri(&self) -> &str {
        &self.uri
    }
    /// Where the range begins; None: with the object.
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }
    /// None: up to the object's end.
    pub fn length(&self) -> Option<u64> {
        self.length
    }
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }
    pub fn media_type(&self) -> Option<&str> {
        self.media_type.as_deref()
    }
}

/// Its uri and range, for messages.
impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)?;
        match (self.offset, self.length) {
            (None, None) => Ok(()),
            (from, Some(n)) => write!(f, " [{n} bytes from {}]", from.unwrap_or(0)),
            (from, None) => write!(f, " [from {}]", from.unwrap_or(0)),
        }
    }
}

impl TryFrom<Written> for ObjectRef {
    type Error = Error;

    fn try_from(written: Written) -> Result<ObjectRef> {
        let Written { uri, offset, length, version, media_type } = written;
        let mut object = ObjectRef::new(uri)?.ranged(offset, length)?;
        if let Some(version) = version {
            object = object.with_version(version)?;
        }
        match media_type {
            Some(media_type) => object.with_media_type(media_type),
            None => Ok(object),
        }
    }
}

impl From<ObjectRef> for Written {
    fn from(object: ObjectRef) -> Written {
        let ObjectRef { uri, offset, length, version, media_type } = object;
        Written { uri, offset, length, version, media_type }
    }
}

/// The extension type, for [`Field::try_extension_type`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectType;

impl ExtensionType for ObjectType {
    const NAME: &'static str = NAME;
    type Metadata = ();

    fn metadata(&self) -> &() {
        &()
    }

    fn serialize_metadata(&self) -> Option<String> {
        None
    }

    fn deserialize_metadata(_: Option<&str>) -> Result<(), ArrowError> {
        Ok(())
    }

    fn supports_data_type(&self, given: &DataType) -> Result<(), ArrowError> {
        match *given == data_type() {
            true => Ok(()),
            false => {
                Err(ArrowError::InvalidArgumentError(format!("{NAME} is {}, and not {given}", data_type())))
            }
        }
    }

    fn try_new(data_type: &DataType, (): ()) -> Result<Self, ArrowError> {
        ObjectType.supports_data_type(data_type).map(|()| ObjectType)
    }
}

/// What a reference is stored as: `uri: Utf8`, `offset: UInt64?`, `length: UInt64?`, `version: Utf8?`, `media_type: Utf8?`.
pub fn data_type() -> DataType {
    DataType::Struct(fields())
}

fn fields() -> Fields {
    Fields::from(vec![
        Field::new("uri", DataType::Utf8, false),
        Field::new("offset", DataType::UInt64, true),
        Field::new("length", DataType::UInt64, true),
        Field::new("version", DataType::Utf8, true),
        Field::new("media_type", DataType::Utf8, true),
    ])
}

/// A column of references.
pub fn field(name: &str, nullable: bool) -> Field {
    Field::new(name, data_type(), nullable).with_extension_type(ObjectType)
}

/// Whether a column says that it holds references.
pub fn is_object(field: &Field) -> bool {
    field.extension_type_name() == Some(NAME) && *field.data_type() == data_type()
}

/// References as the values of a column made by [`field`].
pub fn column<'a>(objects: impl IntoIterator<Item = Option<&'a ObjectRef>>) -> ArrayRef {
    let (mut uris, mut versions, mut types) =
        (StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
    let (mut offsets, mut lengths) = (UInt64Builder::new(), UInt64Builder::new());
    let mut present = Vec::new();
    for object in objects {
        present.push(object.is_some());
        uris.append_value(object.map_or("", |o| &o.uri));
        offsets.append_option(object.and_then(|o| o.offset));
        lengths.append_option(object.and_then(|o| o.length));
        versions.append_option(object.and_then(|o| o.version.as_deref()));
        types.append_option(object.and_then(|o| o.media_type.as_deref()));
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(uris.finish()),
        Arc::new(offsets.finish()),
        Arc::new(lengths.finish()),
        Arc::new(versions.finish()),
        Arc::new(types.finish()),
    ];
    let nulls = present.contains(&false).then(|| present.into());
    Arc::new(StructArray::new(fields(), columns, nulls))
}

/// A column of references, to be read row by row.
pub struct Objects<'a> {
    all: &'a StructArray,
    uris: &'a StringArray,
    offsets: &'a UInt64Array,
    lengths: &'a UInt64Array,
    versions: &'a StringArray,
    types: &'a StringArray,
}

impl<'a> Objects<'a> {
    /// The column of this name.
    pub fn of(rows: &'a RecordBatch, name: &str) -> Result<Objects<'a>> {
        let column = rows.column_by_name(name).ok_or_else(|| {
            Error::invalid(format!("there is no column `{name}` of references to objects ({NAME})"))
        })?;
        Objects::new(column.as_ref()).map_err(|e| e.context(format_args!("column `{name}`")))
    }

    /// A column by itself.
    pub fn new(column: &'a dyn Array) -> Result<Objects<'a>> {
        if *column.data_type() != data_type() {
            let message =
                format!("it is {}; references to objects ({NAME}) are {}", column.data_type(), data_type());
            return Err(Error::invalid(message));
        }
        let all = column.as_struct();
        Ok(Objects {
            all,
            uris: all.column(0).as_string(),
            offsets: all.column(1).as_primitive::<UInt64Type>(),
            lengths: all.column(2).as_primitive::<UInt64Type>(),
            versions: all.column(3).as_string(),
            types: all.column(4).as_string(),
        })
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The reference in a row, checked; None where the row has none.
    pub fn get(&self, row: usize) -> Result<Option<ObjectRef>> {
        if self.all.is_null(row) {
            return Ok(None);
        }
        let number = |column: &UInt64Array| column.is_valid(row).then(|| column.value(row));
        let text = |column: &StringArray| column.is_valid(row).then(|| column.value(row).to_owned());
        let written = Written {
            uri: text(self.uris).unwrap_or_default(),
            offset: number(self.offsets),
            length: number(self.lengths),
            version: text(self.versions),
            media_type: text(self.types),
        };
        ObjectRef::try_from(written).map(Some)
    }

    /// All of them; a row without one is an error.
    pub fn all(&self) -> Result<Vec<ObjectRef>> {
        let missing = |row| Error::invalid(format!("row {row} has no reference to an object"));
        (0..self.len()).map(|row| self.get(row)?.ok_or_else(|| missing(row))).collect()
    }
}

#[cfg(test)]
mod tests {
    use arrow_schema::Schema;

    use super::*;

    fn object() -> ObjectRef {
        let object = ObjectRef::new("s3://bucket/a%20b.png").unwrap().with_range(10, 5).unwrap();
        object.with_version("\"e\"").unwrap().with_media_type("image/png").unwrap()
    }

    #[test]
    fn references_pass_through_a_column_and_json() {
        let plain = ObjectRef::new("file:///tmp/x").unwrap();
        let tail = ObjectRef::new("https://host:1/x").unwrap().with_range(7, None).unwrap();
        let schema = Arc::new(Schema::new(vec![field("image", true)]));
        let given = [Some(object()), None, Some(plain.clone()), Some(tail.clone())];
        let rows =
            RecordBatch::try_new(schema, vec![column(given.iter().map(Option::as_ref))]).unwrap().slice(0, 4);
        assert!(is_object(rows.schema().field(0)));
        rows.schema().field(0).try_extension_type::<ObjectType>().unwrap();
        for first in 0..4 {
            let rows = rows.slice(first, 4 - first);
            let objects = Objects::of(&rows, "image").unwrap();
            let read: Vec<_> = (0..objects.len()).map(|row| objects.get(row).unwrap()).collect();
            assert_eq!(read, given[first..]);
        }
        assert!(Objects::of(&rows, "image").unwrap().all().unwrap_err().message().contains("row 1"));
        for object in given.iter().flatten() {
            let json = serde_json::to_string(object).unwrap();
            assert_eq!(serde_json::from_str::<ObjectRef>(&json).unwrap(), *object);
        }
        assert_eq!(object().to_string(), "s3://bucket/a%20b.png [5 bytes from 10]");
        assert_eq!(tail.to_string(), "https://host:1/x [from 7]");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let new = |uri: &str| ObjectRef::new(uri).map(drop);
        let plain = || ObjectRef::new("file:///x").unwrap();
        for (refused, says) in [
            (new("image.png"), "no uri"),
            (new("s3://me:hush@bucket/x"), "may hold a key"),
            (new("https://host/x?X-Amz-Signature=hush"), "may hold a key"),
            (new("https://host/x#hush"), "may hold a key"),
            (new("https://host/a b"), "byte 14"),
            (new("https://host/\u{e4}"), "byte 13"),
            (new("https://host/%4"), "`%4`"),
            (new("https://host/%zz"), "`%zz`"),
            (new("s3://bucket"), "no path"),
            (new(&format!("s3://b/{}", "x".repeat(4096))), "4096"),
            (plain().with_range(1, 0).map(drop), "0 bytes from 1"),
            (plain().with_range(u64::MAX, 1).map(drop), "not possible"),
            (plain().with_version("").map(drop), "version"),
            (plain().with_version("a\nb").map(drop), "version"),
            (plain().with_media_type("x".repeat(2000)).map(drop), "media type"),
        ] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("hush"), "{says}: {error}");
        }
        for json in
            [r#"{"uri":"x"}"#, r#"{"uri":"file:///x","key":"y"}"#, r#"{"uri":"file:///x","length":0}"#]
        {
            assert!(serde_json::from_str::<ObjectRef>(json).is_err(), "{json}");
        }
        let rows = RecordBatch::try_from_iter([(
            "image",
            Arc::new(StringArray::from(vec!["file:///x"])) as ArrayRef,
        )]);
        let rows = rows.unwrap();
        let says = |name| Objects::of(&rows, name).map(drop).unwrap_err().to_string();
        assert!(says("image").contains("it is Utf8; references to objects"), "{}", says("image"));
        assert!(says("other").contains("no column `other`"));
        assert!(!is_object(&Field::new("x", data_type(), false)), "nothing says that it is one");
    }
}
