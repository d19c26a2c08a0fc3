//! Chunks counted by the embedding model's own tokenizer. Needs the model's files.

use std::path::PathBuf;

use pelton_text::Chunker;
use pelton_text::chunk::Size;

#[test]
fn chunks_fit_the_model_and_leave_nothing_out() {
    let given = std::env::var_os("PELTON_MODEL").map(PathBuf::from);
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = given.unwrap_or_else(|| workspace.join(".cache/models/all-minilm-l6-v2"));
    let path = folder.join("tokenizer.json");
    assert!(path.is_file(), "no {}; run `cargo xtask setup`, or set PELTON_MODEL", path.display());
    let mut tokenizer = tokenizers::Tokenizer::from_file(&path).unwrap();
    tokenizer.with_truncation(None).unwrap().with_padding(None);
    let chunker = Chunker::new(&path, Size::default()).unwrap();
    // This crate's own sources: prose, code, and characters of several bytes.
    let sources = ["chunk.rs", "html.rs", "media.rs", "chunk/tests.rs"];
    for source in sources {
        let text =
            std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src").join(source))
                .unwrap();
        let (mut reached, mut sizes) = (0, Vec::new());
        for slice in chunker.chunks(&text) {
            let slice = slice.unwrap();
            sizes.push(tokenizer.encode(slice.text, true).unwrap().len());
            assert_eq!(text.get(reached..slice.start).unwrap_or_default().trim(), "");
            reached = slice.start + slice.text.len();
        }
        assert_eq!(text[reached..].trim(), "");
        assert!(sizes.iter().all(|s| *s <= 128), "{source}: {sizes:?}");
        let mean = sizes.iter().sum::<usize>() / sizes.len();
        assert!(mean > 90, "{source}: {mean} tokens a chunk on the average");
    }
}
