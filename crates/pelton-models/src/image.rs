//! Pictures to pixels, as an operator.

use std::io::Cursor;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::{Array, FixedSizeListArray, Float32Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::service::show_columns;
use pelton_core::{Error, Result};
use pelton_dataflow::batch::RowError;
use pelton_dataflow::operator::{Operator, Output, Transform};

/// Pixels a side, and in all, that come out.
const SIDE: usize = 8;
pub(crate) const PIXELS: usize = SIDE * SIDE;

/// The largest picture that is decoded, in pixels: a small file can hold a huge one.
const MAX_PIXELS: u64 = 16 << 20;

/// `uri: Utf8`, `content: Binary` (a PNG file) becomes `uri: Utf8`, `pixels: FixedSizeList<Float32>[64]`: 8 x 8 grey
/// values from 0 (black, or transparent) to 1 (white), row by row; each is the mean of the area that it stands for. Other
/// columns are not carried on. A file that cannot be decoded is an error row that names it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pixels;

pub(crate) fn pixels_field() -> Field {
    let item = Field::new("item", DataType::Float32, false);
    Field::new("pixels", DataType::FixedSizeList(Arc::new(item), PIXELS as i32), false)
}

impl Operator for Pixels {
    fn output(&self, input: &Schema) -> Result<SchemaRef> {
        for (name, data_type) in [("uri", DataType::Utf8), ("content", DataType::Binary)] {
            if !input.field_with_name(name).is_ok_and(|f| *f.data_type() == data_type) {
                let given = show_columns(input);
                let message = format!("pixels needs a column {name}: {data_type}, and is given ({given})");
                return Err(Error::invalid(message));
            }
        }
        Ok(output())
    }

    fn create(&self) -> Result<Box<dyn Transform>> {
        Ok(Box::new(Decoding(output())))
    }
}

fn output() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("uri", DataType::Utf8, false), pixels_field()]))
}

struct Decoding(SchemaRef);

impl Transform for Decoding {
    fn process(&mut self, rows: RecordBatch, output: &mut Output) -> Result<()> {
        let (uris, contents) = (rows.column_by_name("uri"), rows.column_by_name("content"));
        let uris = uris.and_then(|c| c.as_string_opt::<i32>());
        let contents = contents.and_then(|c| c.as_binary_opt::<i32>());
        let (Some(uris), Some(contents)) = (uris, contents) else {
            return Err(Error::internal("a batch lacks the columns uri and content"));
        };
        let (mut good, mut values) = (StringBuilder::new(), Vec::new());
        for row in 0..rows.num_rows() {
            let uri = if uris.is_valid(row) { uris.value(row) } else { "(no uri)" };
            let content = if contents.is_valid(row) { contents.value(row) } else { b"" };
            match decode(content) {
                Ok(pixels) => {
                    good.append_value(uri);
                    values.extend(pixels);
                }
                Err(error) => {
                    let error = error.context(format!("image {uri}"));
                    output.errors.push(RowError { row: uri.to_owned(), error });
                }
            }
        }
        if !values.is_empty() {
            let DataType::FixedSizeList(item, size) = pixels_field().data_type().clone() else {
                return Err(Error::internal("pixels are a list"));
            };
            let pixels = FixedSizeListArray::try_new(item, size, Arc::new(Float32Array::from(values)), None)?;
            output
                .rows
                .push(RecordBatch::try_new(self.0.clone(), vec![Arc::new(good.finish()), Arc::new(pixels)])?);
        }
        Ok(())
    }
}

fn decode(content: &[u8]) -> Result<[f32; PIXELS]> {
    if content.is_empty() {
        return Err(Error::user("the file is empty"));
    }
    let bad =
        |e: png::DecodingError| Error::user(format!("no good PNG file ({e}); convert it, or leave it out"));
    let limits = png::Limits { bytes: MAX_PIXELS as usize };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(content), limits);
    // Palettes, bit depths and transparent colours become 8-bit channels.
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(bad)?;
    let (width, height) = reader.info().size();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(Error::limit(format!(
            "{width} x {height} pixels, above the limit of {} megapixels; make it smaller, or leave it out",
            MAX_PIXELS >> 20
        )));
    }
    let size = reader.output_buffer_size().ok_or_else(|| Error::limit("larger than the memory"))?;
    let mut buffer = vec![0; size];
    let frame = reader.next_frame(&mut buffer).map_err(bad)?;
    let mean = |rgb: &[u8]| 0.299 * f32::from(rgb[0]) + 0.587 * f32::from(rgb[1]) + 0.114 * f32::from(rgb[2]);
    type Gray = Box<dyn Fn(&[u8]) -> f32>;
    let gray: Gray = match frame.color_type {
        png::ColorType::Grayscale => Box::new(|p| f32::from(p[0])),
        png::ColorType::GrayscaleAlpha => Box::new(|p| f32::from(p[0]) * f32::from(p[1]) / 255.0),
        png::ColorType::Rgb => Box::new(mean),
        png::ColorType::Rgba => Box::new(move |p| mean(p) * f32::from(p[3]) / 255.0),
        png::ColorType::Indexed => return Err(Error::internal("a palette that was not expanded")),
    };
    let samples = frame.color_type.samples();
    let at = |x: usize, y: usize| gray(&buffer[y * frame.line_size + x * samples..][..samples]) / 255.0;
    Ok(shrink(width as usize, height as usize, at))
}

/// The mean over the part of the picture under each of the 8 x 8 cells, parts of pixels counted as such.
fn shrink(width: usize, height: usize, at: impl Fn(usize, usize) -> f32) -> [f32; PIXELS] {
    let (columns, rows) = (cells(width), cells(height));
    let mut pixels = [0.0; PIXELS];
    for (i, pixel) in pixels.iter_mut().enumerate() {
        let (mut sum, mut weight) = (0.0f64, 0.0f64);
        for &(y, part_y) in &rows[i / SIDE] {
            for &(x, part_x) in &columns[i % SIDE] {
                sum += f64::from(at(x, y)) * part_x * part_y;
                weight += part_x * part_y;
            }
        }
        *pixel = (sum / weight) as f32;
    }
    pixels
}

/// For each of the 8 cells of an axis: the pixels under it, and how much of each.
fn cells(length: usize) -> [Vec<(usize, f64)>; SIDE] {
    std::array::from_fn(|cell| {
        // In eighths of a pixel, so that the borders are whole numbers.
        let (begin, end) = (cell * length, (cell + 1) * length);
        (begin / SIDE..end.div_ceil(SIDE))
            .map(|i| (i, (end.min((i + 1) * SIDE) - begin.max(i * SIDE)) as f64 / SIDE as f64))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use arrow_array::{BinaryArray, StringArray};

    use super::*;

    fn png(width: u32, height: u32, color: png::ColorType, data: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, width, height);
        encoder.set_color(color);
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        file
    }

    #[test]
    fn eight_by_eight_stays_and_other_sizes_are_averaged() {
        let ramp: Vec<u8> = (0..64).map(|i| i * 4).collect();
        let pixels = decode(&png(8, 8, png::ColorType::Grayscale, &ramp)).unwrap();
        for (pixel, value) in pixels.iter().zip(&ramp) {
            assert!((pixel - f32::from(*value) / 255.0).abs() < 1e-6);
        }
        // Each pixel drawn as 3 x 3 gives the same again.
        let large: Vec<u8> = (0..24 * 24).map(|i| ramp[i / 24 / 3 * 8 + i % 24 / 3]).collect();
        let again = decode(&png(24, 24, png::ColorType::Grayscale, &large)).unwrap();
        assert!(pixels.iter().zip(again).all(|(a, b)| (a - b).abs() < 1e-6));
        // Sizes that 8 does not divide, larger and smaller, keep the mean.
        for (width, height) in [(13, 5), (1, 1), (100, 3)] {
            let data: Vec<u8> = (0..width * height).map(|i| (i * 37 % 251) as u8).collect();
            let mean = data.iter().map(|v| f64::from(*v) / 255.0).sum::<f64>() / data.len() as f64;
            let pixels = decode(&png(width, height, png::ColorType::Grayscale, &data)).unwrap();
            assert!((pixels.iter().map(|v| f64::from(*v)).sum::<f64>() / 64.0 - mean).abs() < 1e-5);
        }
    }

    #[test]
    fn colours_become_grey_and_transparent_is_black() {
        let white = |color, data: &[u8]| decode(&png(1, 1, color, data)).unwrap()[0];
        assert!((white(png::ColorType::Rgb, &[255, 255, 255]) - 1.0).abs() < 1e-5);
        assert!((white(png::ColorType::Rgba, &[255, 255, 255, 51]) - 0.2).abs() < 1e-5);
        assert!((white(png::ColorType::GrayscaleAlpha, &[255, 0])).abs() < 1e-5);
    }

    #[test]
    fn a_file_that_is_no_good_is_an_error_row_and_the_others_flow_on() {
        let good = png(8, 8, png::ColorType::Grayscale, &[255; 64]);
        let mut corrupt = good.clone();
        let middle = corrupt.len() / 2;
        corrupt[middle] ^= 0xff;
        // The header alone claims 60,000 x 60,000 pixels.
        let mut bomb = png(1, 1, png::ColorType::Grayscale, &[0]);
        bomb[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
        let sum = crc32(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&sum.to_be_bytes());
        let files: [(&str, &[u8]); 5] = [
            ("a", &good),
            ("cut", &good[..good.len() / 2]),
            ("flipped", &corrupt),
            ("bomb", &bomb),
            ("none", b""),
        ];
        let input = Schema::new(vec![
            Field::new("uri", DataType::Utf8, false),
            Field::new("content", DataType::Binary, false),
        ]);
        let schema = Pixels.output(&input).unwrap();
        let uris = StringArray::from_iter_values(files.map(|f| f.0));
        let contents = BinaryArray::from_iter_values(files.map(|f| f.1));
        let rows = RecordBatch::try_new(Arc::new(input), vec![Arc::new(uris), Arc::new(contents)]).unwrap();
        let mut out = Output::default();
        Pixels.create().unwrap().process(rows, &mut out).unwrap();
        assert_eq!((out.rows.len(), out.rows[0].num_rows(), out.rows[0].schema()), (1, 1, schema));
        let messages: Vec<String> = out.errors.iter().map(|e| e.error.to_string()).collect();
        assert_eq!(
            out.errors.iter().map(|e| e.row.as_str()).collect::<Vec<_>>(),
            ["cut", "flipped", "bomb", "none"]
        );
        assert!(messages[0].starts_with("image cut: no good PNG file"), "{messages:?}");
        assert!(
            messages[2].contains("60000 x 60000 pixels, above the limit of 16 megapixels"),
            "{messages:?}"
        );
        assert_eq!(messages[3], "image none: the file is empty");
    }

    /// As the PNG specification defines it.
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(
                crc ^ u32::from(*byte),
                |c, _| {
                    if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 }
                },
            )
        })
    }
}
