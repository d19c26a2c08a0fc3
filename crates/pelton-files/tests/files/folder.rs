use std::fs;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{BinaryType, Utf8Type};
use pelton_core::{Bytes, Kind};
use pelton_dataflow::batch::RowError;
use pelton_dataflow::source::Source;
use pelton_files::{Folder, Selection, folder};
use tempfile::tempdir;

use crate::{error, read, says, write};

fn all(folder: &Path) -> Selection {
    Selection::all([folder])
}

fn source(files: Selection) -> Folder {
    Folder::new(&folder::Settings::new(files)).unwrap()
}

fn uris(files: Selection) -> Vec<String> {
    source(files).splits().unwrap().into_iter().map(|s| s.uri).collect()
}

/// Good rows and bad rows of all splits.
fn contents(source: &Folder) -> (Vec<(String, Vec<u8>)>, Vec<RowError>) {
    let (mut good, mut bad) = (vec![], vec![]);
    for split in source.splits().unwrap() {
        let reads = read(source, &split, 0);
        assert_eq!(reads.len(), 1);
        for read in reads {
            assert_eq!(read.position, 1);
            assert_eq!(read.rows.schema(), source.schema());
            for i in 0..read.rows.num_rows() {
                let uri = read.rows.column(0).as_bytes::<Utf8Type>().value(i).to_owned();
                assert_eq!(uri, split.uri);
                good.push((uri, read.rows.column(1).as_bytes::<BinaryType>().value(i).to_vec()));
            }
            bad.extend(read.bad);
        }
        assert!(read(source, &split, 1).is_empty(), "nothing comes after the file");
    }
    (good, bad)
}

#[test]
fn a_folder_gives_a_row_a_file_in_order() {
    let dir = tempdir().unwrap();
    for name in ["b.md", "a/z.md", "a/b/c.md", "a.txt", ".hidden.md", ".git/config.md"] {
        write(dir.path(), name, name);
    }
    write(dir.path(), "empty.md", "");
    let source = source(all(dir.path()));
    let (good, bad) = contents(&source);
    let expected: Vec<_> =
        ["a.txt", "a/b/c.md", "a/z.md", "b.md"].map(|n| (n.to_owned(), n.as_bytes().to_vec())).into();
    assert!(bad.is_empty());
    assert_eq!(good.iter().filter(|(_, content)| !content.is_empty()).cloned().collect::<Vec<_>>(), expected);
    assert!(good.contains(&("empty.md".to_owned(), vec![])));

    let first = source.splits().unwrap();
    assert_eq!(first, source.splits().unwrap(), "the same in every run");
    write(dir.path(), "b.md", "something else");
    let second = source.splits().unwrap();
    let changed: Vec<_> =
        first.iter().zip(&second).filter(|(a, b)| a != b).map(|(a, _)| a.uri.as_str()).collect();
    assert_eq!(changed, ["b.md"]);
}

#[test]
fn filters_and_skipped_folders_leave_files_out() {
    let dir = tempdir().unwrap();
    for name in ["a.md", "b.MD", "c.txt", "out/d.md", "sub/e.md", "sub/f.md"] {
        write(dir.path(), name, "");
    }
    let files = Selection {
        extensions: vec!["md".into()],
        skip: vec![dir.path().join("sub/../out"), dir.path().join("sub/f.md"), dir.path().join("absent")],
        ..all(dir.path())
    };
    assert_eq!(uris(files), ["a.md", "b.MD", "sub/e.md"]);
    let files = Selection { globs: vec!["sub/*".into(), "c.*".into()], ..all(dir.path()) };
    assert_eq!(uris(files), ["c.txt", "sub/e.md", "sub/f.md"]);
}

#[test]
fn a_file_may_be_named_and_several_inputs_are_kept_apart() {
    let dir = tempdir().unwrap();
    for name in ["a/x.md", "b/x.md", "b/deep/y.md"] {
        write(dir.path(), name, name);
    }
    let file = dir.path().join("b/x.md");
    let only = Selection { extensions: vec!["txt".into()], ..all(&file) };
    assert_eq!(uris(only), ["x.md"], "a named file is read whatever the filter");

    let both =
        source(Selection::all([dir.path().join("a"), dir.path().join("b"), file, dir.path().join("b/deep")]));
    let (good, _) = contents(&both);
    assert_eq!(
        good.iter().map(|(uri, _)| uri.as_str()).collect::<Vec<_>>(),
        ["a/x.md", "b/deep/y.md", "b/x.md"]
    );
    assert!(good.iter().all(|(uri, content)| uri.as_bytes() == content));
}

#[test]
fn a_large_file_is_a_bad_row_and_is_not_read() {
    let dir = tempdir().unwrap();
    // A hole: reading it would take 40 GB of memory.
    fs::File::create(dir.path().join("huge.bin")).unwrap().set_len(40 << 30).unwrap();
    write(dir.path(), "just.bin", vec![7; 1000]);
    write(dir.path(), "over.bin", vec![7; 1001]);
    let settings = folder::Settings { files: all(dir.path()), max_bytes: Bytes(1000) };
    let (good, bad) = contents(&Folder::new(&settings).unwrap());
    assert_eq!(good, [("just.bin".to_owned(), vec![7; 1000])]);
    assert_eq!(bad.iter().map(|b| b.row.as_str()).collect::<Vec<_>>(), ["huge.bin", "over.bin"]);
    for (bad, size) in bad.into_iter().zip(["40 GiB", "1001 B"]) {
        assert_eq!(bad.error.kind(), Kind::Limit);
        says(bad.error, &[size, "over the limit of 1000 B a file", "--max-file-size"]);
    }
    says(
        error(Folder::new(&folder::Settings { files: all(dir.path()), max_bytes: Bytes::mib(4096) })),
        &["max_bytes is 4 GiB", "at most"],
    );
}

#[test]
fn what_vanished_is_a_bad_row() {
    let dir = tempdir().unwrap();
    let path = write(dir.path(), "a.md", "a");
    let source = source(all(dir.path()));
    let splits = source.splits().unwrap();
    fs::remove_file(path).unwrap();
    let bad = read(&source, &splits[0], 0).remove(0).bad.remove(0);
    assert_eq!((bad.row.as_str(), bad.error.kind()), ("a.md", Kind::Storage));
    says(bad.error, &["reading", "a.md", "No such file"]);
}

#[test]
fn missing_and_empty_inputs_are_refused() {
    let dir = tempdir().unwrap();
    says(error(source(all(&dir.path().join("absent"))).splits()), &["absent", "no such folder or file"]);
    write(dir.path(), "a.txt", "");
    let files = Selection { extensions: vec!["md".into()], ..all(dir.path()) };
    says(error(source(files).splits()), &["no file with extension md in", dir.path().to_str().unwrap()]);
    says(error(Folder::new(&folder::Settings::new(Selection::default()))), &["no input"]);
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_but_not_in_circles() {
        let dir = tempdir().unwrap();
        let root = dir.path().join("root");
        write(&root, "real/a.md", "a");
        write(dir.path(), "elsewhere/b.md", "b");
        write(dir.path(), "beside.md", "never reached by a link to a folder above");
        symlink(".", root.join("self")).unwrap();
        symlink("../..", root.join("real/up")).unwrap();
        symlink("loop2", root.join("loop1")).unwrap();
        symlink("loop1", root.join("loop2")).unwrap();
        symlink("real", root.join("alias")).unwrap();
        symlink("../elsewhere", root.join("outside")).unwrap();
        symlink("real/a.md", root.join("link.md")).unwrap();
        symlink("absent", root.join("dangling.md")).unwrap();
        let files = Selection { extensions: vec!["md".into()], ..all(&root) };
        assert_eq!(uris(files.clone()), ["dangling.md", "link.md", "outside/b.md", "real/a.md"]);
        let (good, bad) = contents(&source(files));
        assert_eq!(good.len(), 3);
        assert_eq!(bad.len(), 1);
        assert_eq!(bad[0].row, "dangling.md");
    }

    #[test]
    fn names_that_are_not_utf8_are_read() {
        let dir = tempdir().unwrap();
        for name in [&b"\xff.md"[..], b"\xfe.md", b"sub\xff/x.md"] {
            let path = dir.path().join(std::ffi::OsStr::from_bytes(name));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let (good, bad) = contents(&source(Selection { extensions: vec!["md".into()], ..all(dir.path()) }));
        assert!(bad.is_empty());
        assert_eq!(good.len(), 3);
        assert!(good.iter().all(|(uri, _)| uri.ends_with(".md")));
    }

    #[test]
    fn what_may_not_be_read_is_a_bad_row() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempdir().unwrap();
        let file = write(dir.path(), "a.md", "a");
        let folder = write(dir.path(), "sub/b.md", "b").parent().unwrap().to_owned();
        write(dir.path(), "c.md", "c");
        for path in [&file, &folder] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
        }
        let denied = fs::read(&file).is_err();
        let (good, bad) = contents(&source(all(dir.path())));
        for path in [&file, &folder] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        // An administrator may read everything.
        assert_eq!((good.len(), bad.len()), if denied { (1, 2) } else { (3, 0) });
        for (bad, row) in bad.into_iter().zip(["a.md", "sub"]) {
            assert_eq!(bad.row, row);
            says(bad.error, &["Permission denied", "ls -ld"]);
        }
    }

    #[test]
    fn pipes_are_not_waited_for() {
        let dir = tempdir().unwrap();
        write(dir.path(), "a.md", "a");
        let pipe = dir.path().join("pipe.md");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(uris(all(dir.path())), ["a.md"]);
        says(error(source(all(&pipe)).splits()), &["neither a folder nor a file"]);
    }
}
