use std::collections::BTreeMap;

use arrow_array::StringArray;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;

use super::*;

/// Words and punctuation as a BERT tokenizer sees them: known words whole, others letter by letter, lower-cased.
fn tokenizer() -> Tokenizer {
    let mut vocabulary = BTreeMap::new();
    for token in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "word", "is"] {
        vocabulary.insert(token.to_owned(), vocabulary.len());
    }
    for letter in ('a'..='z').chain(".,!?()öü日本語😀".chars()) {
        vocabulary.insert(letter.to_string(), vocabulary.len());
        vocabulary.insert(format!("##{letter}"), vocabulary.len());
    }
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": [], "decoder": null,
        "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": false, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

fn chunker(tokens: usize, overlap: usize) -> Chunker {
    Chunker::with(tokenizer(), Size { tokens, overlap }).unwrap()
}

/// Cuts, and checks what holds for every text.
fn check(tokens: usize, overlap: usize, text: &str) -> Vec<String> {
    let chunker = chunker(tokens, overlap);
    let count = |s: &str| chunker.tokenizer.encode(s, true).unwrap().len();
    let slices: Vec<Slice<'_>> = chunker.chunks(text).collect::<Result<_>>().unwrap();
    let mut reached = 0;
    for (i, slice) in slices.iter().enumerate() {
        assert_eq!(&text[slice.start..slice.start + slice.text.len()], slice.text, "not a slice");
        assert!(count(slice.text) <= tokens, "{} tokens in {:?}", count(slice.text), slice.text);
        let between = text.get(reached..slice.start).unwrap_or_default();
        assert_eq!(between.trim(), "", "left out before chunk {i}");
        let end = slice.start + slice.text.len();
        assert!(end > reached, "chunk {i} says nothing new");
        if i > 0 {
            let shared = &text[slice.start.min(reached)..reached];
            assert!(count(shared) <= overlap + 2, "{shared:?} is repeated");
        }
        reached = end;
    }
    assert_eq!(text[reached..].trim(), "", "the end is left out");
    slices.into_iter().map(|s| s.text.to_owned()).collect()
}

#[test]
fn a_short_text_is_one_chunk() {
    assert_eq!(check(16, 4, "  word is word. \n"), ["word is word."]);
    assert_eq!(check(16, 4, " \n\n "), [""; 0]);
}

#[test]
fn chunks_end_at_sentences_and_paragraphs_where_there_are_any() {
    let text =
        "word word word word word word word word. word is word word word word word word.\n\nis is word";
    assert_eq!(
        check(14, 2, text),
        [
            "word word word word word word word word.",
            "word. word is word word word word word word.",
            "word. \n\nis is word"
        ]
        .map(|s| s.replace(". \n", ".\n"))
    );
}

#[test]
fn words_are_repeated_up_to_the_overlap() {
    let text = "word ".repeat(100);
    let chunks = check(22, 5, &text);
    assert_eq!(chunks[0].len(), 20 * 5 - 1);
    assert_eq!(chunks.len(), 1 + (100 - 20usize).div_ceil(20 - 5));
}

#[test]
fn characters_of_several_bytes_stay_whole() {
    check(12, 3, &"Größe über 日本語日本語 😀 word. Ümlaut? ".repeat(50));
    check(12, 3, &"日本語".repeat(500));
    check(10, 4, &"İSTANBUL ŉ ﬁ word ".repeat(40));
}

#[test]
fn words_without_end_and_binary_noise_are_cut() {
    check(16, 4, &"日".repeat(10_000));
    let unknown = "~".repeat(3) + &"x".repeat(100_000);
    let chunker = chunker(16, 4);
    for slice in chunker.chunks(&unknown) {
        assert!(slice.unwrap().text.len() <= 2 * 14 * BYTES_A_TOKEN);
    }
    assert!(chunker.chunks("\u{1}\u{2}\u{3}").next().is_none());
}

#[test]
fn many_kinds_of_text_keep_the_promises() {
    // A small generator of its own: the same texts in every run.
    let mut state = 7u64;
    let mut next = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let parts =
        ["word", " ", "\n", "\n\n", ". ", "is ", "日本", "über ", "(a.b, c) ", "!", "\t", "😀 ", "zz "];
    for _ in 0..200 {
        let text: String = (0..next(300)).map(|_| parts[next(parts.len())]).collect();
        let (size, overlap) = (12 + next(20), next(5));
        let chunker = chunker(size, overlap);
        let slices: Vec<_> = chunker.chunks(&text).collect::<Result<_>>().unwrap();
        let mut reached = 0;
        for slice in slices {
            let between = text.get(reached..slice.start).unwrap_or_default();
            assert_eq!(between.trim(), "");
            assert!(slice.start + slice.text.len() > reached);
            reached = slice.start + slice.text.len();
        }
        assert_eq!(text[reached..].trim(), "");
    }
}

#[test]
fn sizes_that_cannot_work_are_refused() {
    for (tokens, overlap, expected) in [(9, 0, "at least 10"), (34, 17, "at most 16 of 34")] {
        let message = Chunker::with(tokenizer(), Size { tokens, overlap }).err().unwrap().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let message =
        Chunker::new(Path::new("/nowhere/tokenizer.json"), Size::default()).err().unwrap().to_string();
    assert!(message.starts_with("tokenizer /nowhere/tokenizer.json: No such file"), "{message}");
}

#[test]
fn the_operator_counts_chunks_and_bounds_batches() {
    let schema = rows::schema(vec![rows::text("uri"), rows::text("title"), rows::text("text")]);
    let operator = Chunk::new(chunker(10, 0));
    assert_eq!(operator.output(&schema).unwrap(), output());
    let long = "word ".repeat(8 * 100);
    let column = |values: [&str; 3]| Arc::new(StringArray::from(values.to_vec()));
    let columns: Vec<arrow_array::ArrayRef> =
        vec![column(["a", "b", "c"]), column(["A", "B", "C"]), column([&long, "\u{1}", "word is"])];
    let rows = RecordBatch::try_new(schema, columns).unwrap();
    let mut out = Output::default();
    operator.create().unwrap().process(rows, &mut out).unwrap();
    assert_eq!(out.rows.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [64, 37]);
    let last = &out.rows[1];
    assert_eq!(last["uri"].as_string::<i32>().value(36), "c");
    assert_eq!(last["chunk"].as_primitive::<UInt32Type>().values()[34..], [98, 99, 0]);
    assert_eq!(out.errors.len(), 1);
    assert_eq!(out.errors[0].row, "b");
}
