//! Sentence embeddings as a service.
//!
//! The model is a BERT encoder; a text's embedding is the mean of its tokens' vectors, of length 1. That is how
//! sentence-transformers' all-MiniLM-L6-v2 is used, see its model card.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use pelton_core::service::{Context, Definition, Invocation, Methods, Service};
use pelton_core::{BoxFuture, Error, Fate, Kind, Result, Retry};
use tokenizers::Tokenizer;

use crate::model_file;

const NEXT: &str =
    "run `cargo xtask setup`, or name the model's folder with `--model DIR` or the option `model`";

/// The environment variable that bounds the rest of the embedder's threads; whoever starts the instance's process sets it
/// to the declared number of cores.
///
/// candle computes large element-wise steps (GELU, sums) in a second pool, one for the process and sized once by this
/// variable, else by the machine's cores. Measured with one declared core on two: 1.5 cores in use without it, 1.0 with
/// it. It is not set in here: changing the environment is not safe once a process has threads.
pub const THREADS_VARIABLE: &str = "CANDLE_NUM_THREADS";

/// The dimension of the method that [`Service`] declares.
const DIMENSION: usize = 384;

/// Tokens of a text that count, where the option `max_tokens` says nothing: what all-MiniLM-L6-v2 was made for.
const MAX_TOKENS: usize = 256;

/// More of a text is not looked at; far beyond the tokens that count, and tokenizing it all would take long.
const MAX_READ: usize = 256 << 10;

/// Tokens that go through the model at a time, padding included. Bounds the memory; more at a time is no faster.
const TOKENS_A_PASS: usize = 2048;

/// A sentence-embedding model.
///
/// Its method is `embed(text: Utf8) -> (embedding: FixedSizeList<Float32>[384], model: Utf8)`. The list's items are called
/// `item` and are never null; the embedding has the length 1, so that a dot product is the cosine. `model` is the
/// model's name and the first 12 digits of its sha256: embeddings compare where it is the same. What a text has beyond
/// `max_tokens` does not count.
///
/// Matrices are multiplied on as many threads as the declaration gives it cores. That alone does not bound what it takes:
/// see [`THREADS_VARIABLE`].
pub struct Embedder {
    model: BertModel,
    tokenizer: Tokenizer,
    pool: rayon::ThreadPool,
    pad: u32,
    dimension: usize,
    version: String,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The folder with `model.safetensors`, `config.json` and `tokenizer.json`.
    model: PathBuf,
    /// The sha256 that `model.safetensors` must have.
    digest: Option<String>,
    max_tokens: Option<usize>,
}

impl Service for Embedder {
    fn open(ctx: &Context) -> Result<Self> {
        Embedder::open_with(ctx, DIMENSION)
    }

    fn methods() -> Methods<Self> {
        methods(DIMENSION)
    }
}

fn methods(dimension: usize) -> Methods<Embedder> {
    let text = Field::new("text", DataType::Utf8, false);
    Methods::new().serial("embed", vec![text], output(dimension).fields().clone(), Embedder::embed)
}

fn output(dimension: usize) -> SchemaRef {
    let embedding = DataType::FixedSizeList(item(), dimension as i32);
    Arc::new(Schema::new(vec![
        Field::new("embedding", embedding, false),
        Field::new("model", DataType::Utf8, false),
    ]))
}

fn item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Float32, false))
}

impl Embedder {
    /// The service for a model of another dimension than 384.
    pub fn definition(dimension: usize) -> Definition {
        let open = move |ctx: Context| -> BoxFuture<Result<Self>> {
            Box::pin(async move { Embedder::open_with(&ctx, dimension) })
        };
        Definition::with(open, methods(dimension), Service::close)
    }

    fn open_with(ctx: &Context, dimension: usize) -> Result<Self> {
        let options: Options = ctx.options()?;
        let folder = &options.model;
        if !folder.is_dir() {
            return Err(Error::invalid(format!("there is no model folder {}; {NEXT}", folder.display())));
        }
        let weights_path = folder.join("model.safetensors");
        let weights = model_file::read(&weights_path, NEXT)?;
        let digest = model_file::digest(&weights);
        model_file::check_digest(&weights_path, &digest, options.digest.as_deref(), NEXT)?;
        let config = read_config(&folder.join("config.json"))?;
        if config.hidden_size != dimension {
            let found = config.hidden_size;
            return Err(Error::invalid(format!(
                "model {} gives {found} dimensions, the method's are {dimension}; declare it with Embedder::definition({found})",
                folder.display()
            )));
        }
        let max_tokens = options.max_tokens.unwrap_or(MAX_TOKENS.min(config.max_position_embeddings));
        if !(3..=config.max_position_embeddings).contains(&max_tokens) {
            let most = config.max_position_embeddings;
            return Err(Error::invalid(format!(
                "option `max_tokens` is {max_tokens}; this model takes 3 to {most}"
            )));
        }
        let tokenizer = read_tokenizer(&folder.join("tokenizer.json"), max_tokens, config.vocab_size)?;
        // candle multiplies matrices in the rayon pool that calls it, but not everything: see THREADS_VARIABLE.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(model_file::threads(&ctx.resources))
            .thread_name(|i| format!("embed-{i}"))
            .build()
            .map_err(|e| Error::transient(format!("no threads to compute on: {e}")))?;
        let bad = |e| Error::invalid(format!("model file {}: {}; {NEXT}", weights_path.display(), brief(e)));
        let weights =
            VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).map_err(bad)?;
        let model = pool.install(|| BertModel::load(weights, &config)).map_err(bad)?;
        let name =
            folder.canonicalize().ok().and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()));
        let version = format!("{}@{}", name.as_deref().unwrap_or("model"), &digest[..12]);
        let pad = config.pad_token_id as u32;
        let embedder = Embedder { model, tokenizer, pool, pad, dimension, version };
        // Warms up, and finds out now what would fail every request.
        embedder
            .vectors(&["Is everything there?"], &Invocation::default())
            .map_err(|e| e.with_retry(Retry::Never))?;
        Ok(embedder)
    }

    fn embed(&mut self, rows: RecordBatch, invocation: &Invocation) -> Result<RecordBatch> {
        let texts = (rows.column_by_name("text").and_then(|c| c.as_string_opt::<i32>()))
            .filter(|c| c.null_count() == 0)
            .ok_or_else(|| Error::invalid("embed needs a column text: Utf8, none of it null"))?;
        let texts: Vec<&str> = texts.iter().flatten().collect();
        let values = self.vectors(&texts, invocation)?;
        let values = Arc::new(Float32Array::from(values));
        let embedding = FixedSizeListArray::try_new(item(), self.dimension as i32, values, None)?;
        let model = StringArray::from_iter_values(texts.iter().map(|_| &self.version));
        Ok(RecordBatch::try_new(output(self.dimension), vec![Arc::new(embedding), Arc::new(model)])?)
    }

    /// The texts' vectors, one after the other.
    fn vectors(&self, texts: &[&str], invocation: &Invocation) -> Result<Vec<f32>> {
        let tokens = (texts.iter())
            .map(|text| {
                let head = &text[..text.floor_char_boundary(MAX_READ)];
                let encoding = self.tokenizer.encode_fast(head, true);
                Ok(encoding.map_err(|e| Error::user(format!("tokenizer: {e}")))?.get_ids().to_vec())
            })
            .collect::<Result<Vec<Vec<u32>>>>()?;
        // Texts of like length go together, so that there is little padding.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| tokens[*i].len());
        let mut vectors = vec![0.0; texts.len() * self.dimension];
        let mut rest = &order[..];
        while let Some(shortest) = rest.first() {
            if invocation.is_cancelled() {
                return Err(Error::new(
                    Kind::Cancelled,
                    Fate::Executed,
                    Retry::Never,
                    "nobody waits for it any more",
                ));
            }
            let shortest = tokens[*shortest].len();
            let fits = |n: usize| {
                let longest = tokens[rest[n - 1]].len();
                n * longest <= TOKENS_A_PASS && longest <= shortest + shortest / 4 + 8
            };
            let (pass, later) = rest.split_at((2..=rest.len()).take_while(|n| fits(*n)).last().unwrap_or(1));
            rest = later;
            let inputs: Vec<&[u32]> = pass.iter().map(|i| &tokens[*i][..]).collect();
            let outputs = self.pool.install(|| self.pass(&inputs));
            let outputs =
                outputs.map_err(|e| Error::user(format!("model {}: {}", self.version, brief(e))))?;
            for (output, i) in outputs.chunks_exact(self.dimension).zip(pass) {
                let vector = &mut vectors[i * self.dimension..][..self.dimension];
                vector.copy_from_slice(output);
                let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
                if !(length.is_finite() && length > 0.0) {
                    let message =
                        format!("model {} gives no usable vector for a text (length {length})", self.version);
                    return Err(Error::user(message));
                }
                vector.iter_mut().for_each(|v| *v /= length);
            }
        }
        Ok(vectors)
    }

    /// The means of the tokens' vectors, for texts that go through the model together.
    fn pass(&self, inputs: &[&[u32]]) -> candle_core::Result<Vec<f32>> {
        let longest = inputs.iter().map(|i| i.len()).max().unwrap_or(0);
        let shape = (inputs.len(), longest);
        let padded = |real: &dyn Fn(u32) -> u32, pad: u32| -> Vec<u32> {
            let row = |input: &&[u32]| {
                let padding = std::iter::repeat_n(pad, longest - input.len());
                input.iter().map(|id| real(*id)).chain(padding).collect::<Vec<_>>()
            };
            inputs.iter().flat_map(row).collect()
        };
        let ids = Tensor::from_vec(padded(&|id| id, self.pad), shape, &Device::Cpu)?;
        let mask = Tensor::from_vec(padded(&|_| 1, 0), shape, &Device::Cpu)?;
        let types = ids.zeros_like()?;
        let hidden = self.model.forward(&ids, &types, Some(&mask))?.flatten_all()?.to_vec1::<f32>()?;
        let mut means = vec![0.0; inputs.len() * self.dimension];
        let texts = means.chunks_exact_mut(self.dimension).zip(hidden.chunks_exact(longest * self.dimension));
        for ((mean, hidden), input) in texts.zip(inputs) {
            for token in hidden.chunks_exact(self.dimension).take(input.len()) {
                mean.iter_mut().zip(token).for_each(|(m, t)| *m += t);
            }
            mean.iter_mut().for_each(|m| *m /= input.len() as f32);
        }
        Ok(means)
    }
}

fn read_config(path: &Path) -> Result<Config> {
    let bytes = model_file::read(path, NEXT)?;
    let bad = |what: String| Error::invalid(format!("model file {}: {what}; {NEXT}", path.display()));
    let config: Config =
        serde_json::from_slice(&bytes).map_err(|e| bad(format!("no BERT model's configuration: {e}")))?;
    if config.model_type.as_deref().is_some_and(|t| t != "bert") {
        return Err(bad(format!(
            "a {} model, where a bert model is needed",
            config.model_type.unwrap_or_default()
        )));
    }
    let (size, heads) = (config.hidden_size, config.num_attention_heads);
    if size == 0
        || heads == 0
        || size % heads != 0
        || config.vocab_size == 0
        || config.max_position_embeddings < 3
    {
        return Err(bad(format!("{heads} attention heads of {size} dimensions in all cannot be")));
    }
    Ok(config)
}

fn read_tokenizer(path: &Path, max_tokens: usize, vocabulary: usize) -> Result<Tokenizer> {
    let bytes = model_file::read(path, NEXT)?;
    let bad = |what: String| Error::invalid(format!("model file {}: {what}; {NEXT}", path.display()));
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| bad(e.to_string()))?;
    let size = tokenizer.get_vocab_size(true);
    if size > vocabulary {
        return Err(bad(format!("{size} words, the model knows {vocabulary}: it belongs to another model")));
    }
    tokenizer.with_padding(None);
    let truncation = tokenizers::TruncationParams { max_length: max_tokens, ..Default::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|e| bad(e.to_string()))?;
    Ok(tokenizer)
}

/// What candle says, without the stack trace that it may add.
fn brief(e: candle_core::Error) -> String {
    e.to_string().lines().next().unwrap_or_default().to_owned()
}
