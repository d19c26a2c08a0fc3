//! Which pieces of the checkpoint before are used again: rows that wait for answers of minutes are written once, and not with every checkpoint.
//!
//! A piece is found again by its digest. A file of which less than half is still used is not used again, and small pieces are not: so what is
//! kept of earlier checkpoints is at most as much again as what is needed, in a bounded number of files. Pure.

use std::collections::{BTreeMap, HashMap};

use super::manifest::Manifest;

/// A smaller piece is written again rather than looked for.
const LEAST: u64 = 16 << 10;

/// Where the pieces of a complete checkpoint lie.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reusable {
    /// By digest and length: the file's name, and where in it.
    pieces: HashMap<(String, u64), (String, u64)>,
}

impl Reusable {
    /// What can be used of this checkpoint. `sizes`: how long its files are.
    pub(crate) fn of(manifest: &Manifest, sizes: &[u64]) -> Reusable {
        let pieces = || manifest.parts.iter().flat_map(|part| &part.pieces).filter(|p| p.bytes >= LEAST);
        let mut used: BTreeMap<usize, u64> = BTreeMap::new();
        pieces().for_each(|p| *used.entry(p.file).or_default() += p.bytes);
        let half = |file: &usize| sizes.get(*file).is_some_and(|size| used[file] >= size.div_ceil(2));
        let place = |p: &super::manifest::Piece| {
            let name = manifest.files.get(p.file)?.clone();
            Some(((p.sha256.clone(), p.bytes), (name, p.offset)))
        };
        Reusable { pieces: pieces().filter(|p| half(&p.file)).filter_map(place).collect() }
    }

    pub(crate) fn find(&self, sha256: &str, bytes: u64) -> Option<&(String, u64)> {
        (bytes >= LEAST).then(|| self.pieces.get(&(sha256.to_owned(), bytes))).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::manifest::{Part, Piece};

    /// Which of the pieces, each `file:KiB`, are found again in files of these sizes, in KiB.
    fn check(sizes: &[u64], pieces: &str, found: &str) {
        let piece = |(i, word): (usize, &str)| {
            let (file, kib) = word.split_once(':').unwrap();
            let (file, bytes) = (file.parse().unwrap(), kib.parse::<u64>().unwrap() << 10);
            Piece { name: "pending.arrow".into(), file, offset: 7, bytes, sha256: format!("{i}") }
        };
        let pieces: Vec<Piece> = pieces.split(' ').enumerate().map(piece).collect();
        let manifest = Manifest {
            version: 0,
            number: 1,
            generation: 1,
            made_at: 0,
            identity: Vec::new(),
            finished: false,
            staged: BTreeMap::new(),
            files: (0..sizes.len()).map(|f| format!("f{f}")).collect(),
            parts: vec![Part { stage: "a".into(), pieces: pieces.clone() }],
        };
        let sizes: Vec<u64> = sizes.iter().map(|kib| kib << 10).collect();
        let reusable = Reusable::of(&manifest, &sizes);
        let place = |p: &Piece| match reusable.find(&p.sha256, p.bytes) {
            Some((name, 7)) => name.clone(),
            _ => "-".to_owned(),
        };
        assert_eq!(pieces.iter().map(place).collect::<Vec<_>>().join(" "), found, "{pieces:?}");
        assert_eq!(reusable.find("other", 1 << 20), None);
    }

    #[test]
    fn files_that_are_still_of_use_are_used_again() {
        check(&[100], "0:60 0:40", "f0 f0");
        check(&[100, 100], "0:50 1:49", "f0 -");
        check(&[100], "0:10 0:90", "- f0");
        // Small ones do not keep a file.
        check(&[30], "0:10 0:10 0:10", "- - -");
    }
}
