//! What references are read as: the same answers from folders, an S3-compatible server and a plain HTTP server.

use std::fs;
use std::io::Read;
use std::sync::mpsc;
use std::time::Duration;

use pelton_core::service::Counters;
use pelton_core::{Bytes, Error, ObjectRef, Result, Retry};
use pelton_dataflow::source::Source;
use pelton_env::Place;
use pelton_env::real::Host;
use pelton_objects::{Listing, ListingSettings, ObjectReader, ReaderSettings, Store};

use crate::server::{SECRET, Server};
use crate::web::{Fault, Page, Web};
use crate::{World, options};

/// A reader, and what it counts.
struct Reading {
    reader: ObjectReader,
    counters: Counters,
}

impl Reading {
    fn new(settings: &ReaderSettings, keys: &[(String, String)]) -> Reading {
        let counters = Counters::default();
        let reader = ObjectReader::open("eyes", settings, keys, &counters).unwrap();
        Reading { reader, counters }
    }

    fn of(root: &str) -> Reading {
        Reading::new(&settings(root), &[])
    }

    fn counted(&self, what: &str) -> u64 {
        self.counters.read().get(what).copied().unwrap_or(0)
    }
}

fn settings(root: &str) -> ReaderSettings {
    let settings = ReaderSettings::new([root]);
    ReaderSettings { patience: Duration::from_secs(5), attempt_timeout: Duration::from_secs(2), ..settings }
}

fn object(uri: &str) -> ObjectRef {
    ObjectRef::new(uri).unwrap()
}

#[track_caller]
fn says<T>(result: Result<T>, parts: &[&str]) -> Error {
    let Err(error) = result else { panic!("it should have failed: {parts:?}") };
    for part in parts {
        assert!(error.message().contains(part), "`{part}` is not in: {error:?}");
    }
    assert!(!error.message().contains(SECRET), "a secret is in: {error:?}");
    error
}

/// Bytes that are different everywhere.
fn content(n: u32) -> Vec<u8> {
    (0..n).flat_map(u32::to_be_bytes).collect()
}

/// A place with one object, which can be changed and removed.
trait Changeable {
    fn put(&self, content: &[u8]);
    fn remove(&self);
}

/// Whatever the place is: whole, ranges, streams, the version, the end.
fn behaves(reading: &Reading, object: &ObjectRef, place: &dyn Changeable) {
    let all = content(300_000);
    assert!(object.version().is_some());
    assert_eq!(reading.reader.read(object).unwrap(), all);
    let ranged = object.clone().with_range(1000, 500).unwrap();
    assert_eq!(reading.reader.read(&ranged).unwrap(), all[1000..1500]);
    assert_eq!(reading.reader.read_range(&ranged, 100, 50).unwrap(), all[1100..1150]);
    assert_eq!(
        reading.reader.read(&object.clone().with_range(1_199_000, None).unwrap()).unwrap(),
        all[1_199_000..]
    );
    let mut streamed = Vec::new();
    reading.reader.stream(object).read_to_end(&mut streamed).unwrap();
    assert_eq!(streamed, all);
    let mut streamed = Vec::new();
    reading.reader.stream(&ranged).read_to_end(&mut streamed).unwrap();
    assert_eq!(streamed, all[1000..1500]);
    for (range, says_) in [((1_199_999, Some(2)), "1200000 bytes"), ((1_200_001, None), "1200000 bytes")] {
        let beyond = object.clone().with_range(range.0, range.1).unwrap();
        says(reading.reader.read(&beyond), &["object ", says_]);
    }
    says(reading.reader.read_range(&ranged, 400, 101), &["mend the range"]);

    let listed = object.version().unwrap();
    let other = object.clone().with_range(5, 5).unwrap();
    place.put(b"something else, long enough");
    let error =
        says(reading.reader.read(&other), &["it changed since it was listed", listed, "list it again"]);
    assert_eq!(error.retry(), Retry::Never);
    let mut stream = reading.reader.stream(object);
    says(stream.piece(), &["it changed since it was listed", listed]);
    // A range that is not there any more, and a part of one.
    for from in [1000, 20] {
        let beyond = object.clone().with_range(from, 100).unwrap();
        says(reading.reader.read(&beyond), &["it changed since it was listed", listed]);
    }
    let plain = self::object(object.uri());
    assert_eq!(reading.reader.read(&plain).unwrap(), &b"something else, long enough"[..]);
    assert_eq!(reading.reader.read(object).unwrap(), all, "what is kept is of the version that is meant");
    place.put(b"");
    assert_eq!(reading.reader.read(&plain).unwrap(), &b""[..], "nothing is kept of what has no version");
    place.remove();
    let error = says(reading.reader.read(&other), &["it is not there", "deleted or moved", listed]);
    assert_eq!(error.retry(), Retry::Never);
    says(reading.reader.stream(object).piece(), &["it is not there"]);
}

/// The only reference that a source gives.
fn only(source: &impl Source) -> ObjectRef {
    let splits = source.splits().unwrap();
    assert_eq!(splits.len(), 1, "{splits:?}");
    let read = source.open(&splits[0], 0).unwrap().next().unwrap().unwrap();
    assert!(source.open(&splits[0], read.position).unwrap().next().unwrap().is_none());
    let objects = pelton_core::object::Objects::of(&read.rows, "object").unwrap();
    objects.get(0).unwrap().unwrap()
}

fn listing(url: &str, options: &[(String, String)]) -> Listing {
    let options = options.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    Listing::new(ListingSettings::new(Store::open(url, options).unwrap())).unwrap()
}

#[test]
fn files_are_read_by_reference() {
    struct File(std::path::PathBuf);
    impl Changeable for File {
        fn put(&self, content: &[u8]) {
            fs::write(&self.0, content).unwrap();
        }
        fn remove(&self) {
            fs::remove_file(&self.0).unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = File(folder.path().join("a b%20\u{e4}.PNG"));
    file.put(&content(300_000));
    let url = format!("file://{}", folder.path().display());
    let object = only(&listing(&url, &[]));
    assert_eq!(object.media_type(), Some("image/png"));
    assert!(object.uri().ends_with("/a%20b%2520%C3%A4.PNG"), "{object}");
    behaves(&Reading::of(&url), &object, &file);
}

#[test]
fn objects_of_s3_are_read_by_reference() {
    let Some(server) = Server::start() else { return };
    struct Key(World);
    impl Changeable for Key {
        fn put(&self, content: &[u8]) {
            self.0.put("a b%20\u{e4}.png", content);
        }
        fn remove(&self) {
            self.0.remove("a b%20\u{e4}.png");
        }
    }
    let world = Key(World::s3(&server, "pictures"));
    world.put(&content(300_000));
    world.0.put(".hidden/x.png", b"x");
    world.0.put("_staging/x.png", b"x");
    let keys = options(server.port);
    let object = only(&listing("s3://bucket/pictures", &keys));
    assert_eq!(object.uri(), "s3://bucket/pictures/a%20b%2520%C3%A4.png");
    assert!(object.version().unwrap().starts_with('"'), "{object:?}");
    let settings = settings("s3://bucket/pictures/");
    let reading = Reading::new(&settings, &keys);
    assert!(!format!("{:?} {settings:?} {object:?}", reading.reader).contains(SECRET));
    behaves(&reading, &object, &world);
    says(
        ObjectReader::open(
            "eyes",
            &ReaderSettings { s3: [("secret_access_key".to_owned(), SECRET.to_owned())].into(), ..settings },
            &[],
            &Counters::default(),
        ),
        &["`secret_access_key`", "AWS_SECRET_ACCESS_KEY"],
    );
}

#[test]
fn a_version_of_a_bucket_with_versions_is_read_when_there_are_newer_ones() {
    let Some(server) = Server::start() else { return };
    let status = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    let answer = server.send("PUT /bucket?versioning", status.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let world = World::s3(&server, "versions");
    let put = |content: &[u8]| world.put("x", content).expect("the bucket keeps versions");
    let (older, newer) = (put(b"older"), put(b"newer"));
    let reading = Reading::new(&settings("s3://bucket/versions"), &options(server.port));
    let x = object("s3://bucket/versions/x");
    let read = |id: &str| reading.reader.read(&x.clone().with_version(id).unwrap());
    assert_eq!(read(&older).unwrap(), &b"older"[..]);
    assert_eq!(read(&newer).unwrap(), &b"newer"[..]);
    assert_eq!(reading.reader.read(&x).unwrap(), &b"newer"[..]);
    says(read("00000000-0000-0000-0000-000000000000"), &["s3://bucket/versions/x"]);
}

#[test]
fn pages_of_a_plain_server_are_read_by_reference() {
    struct At(Web);
    impl Changeable for At {
        fn put(&self, content: &[u8]) {
            let etag = format!("{:016x}", pelton_core::id::stable_hash(&format!("{content:?}")));
            self.0.put("/pictures/a%20b.png", content, &etag);
        }
        fn remove(&self) {
            self.0.state().pages.clear();
        }
    }
    for no_ranges in [false, true] {
        let web = At(Web::start());
        web.0.state().no_ranges = no_ranges;
        web.put(&content(300_000));
        let etag = web.0.state().pages["/pictures/a%20b.png"].etag.clone().unwrap();
        let object = object(&web.0.url("/pictures/a%20b.png")).with_version(etag).unwrap();
        behaves(&Reading::of(&web.0.url("/pictures")), &object, &web);
        let ranges = web.0.requests().into_iter().filter_map(|(_, range)| range).collect::<Vec<_>>();
        assert!(ranges.contains(&"bytes=1000-1499".to_owned()), "{ranges:?}");
    }
}

#[test]
fn a_server_without_etags_has_the_time_of_the_change_or_nothing_to_compare() {
    let web = Web::start();
    let reading = Reading::of(&web.url("/"));
    let page = |modified| Page { content: b"12345".to_vec(), etag: None, modified };
    web.state().pages.insert("/x".into(), page(Some("Sat, 21 Nov 2026 10:00:00 GMT")));
    let x = object(&web.url("/x"));
    let dated = x.clone().with_version("5-1795255200000000000").unwrap();
    assert_eq!(reading.reader.read(&dated).unwrap(), &b"12345"[..]);
    let older = x.clone().with_version("5-1795255199000000000").unwrap();
    says(reading.reader.read(&older), &["was 5-1795255199000000000 and is 5-1795255200000000000"]);
    web.state().pages.insert("/x".into(), page(None));
    says(reading.reader.read(&older), &["gives none to compare with", "leave the version out"]);
    assert_eq!(reading.reader.read(&x).unwrap(), &b"12345"[..]);
}

#[test]
fn a_server_that_fails_now_and_then_is_asked_again() {
    let web = Web::start();
    web.put("/x", content(50_000), "1");
    let reading = Reading::of(&web.url("/"));
    let x = object(&web.url("/x")).with_version("\"1\"").unwrap();
    web.fail([Fault::Status(503), Fault::Status(429), Fault::Cut(70_000), Fault::Cut(0), Fault::Later(1)]);
    assert_eq!(reading.reader.read(&x).unwrap(), content(50_000));
    assert_eq!((web.requests().len(), reading.counted("object-retries")), (6, 5));
    // A stream goes on where it stopped.
    web.fail([Fault::Status(500), Fault::Cut(70_000), Fault::Status(502), Fault::Cut(100_000)]);
    let mut streamed = Vec::new();
    reading.reader.stream(&x).read_to_end(&mut streamed).unwrap();
    assert_eq!(streamed, content(50_000));
    let ranges: Vec<_> = web.requests().into_iter().map(|(_, range)| range).collect();
    let from = |n: u32| Some(format!("bytes={n}-199999"));
    assert_eq!(ranges, [None, None, from(70_000), from(70_000), from(170_000)]);
    // Not if it is another by then.
    web.fail([Fault::Cut(70_000)]);
    let mut stream = reading.reader.stream(&object(&web.url("/x")));
    let mut first = vec![0; 10];
    stream.read_exact(&mut first).unwrap();
    web.put("/x", content(60_000), "2");
    let error = stream.read_to_end(&mut streamed).unwrap_err();
    assert!(error.to_string().contains("was \"1\" and is \"2\""), "{error}");
}

#[test]
fn a_server_that_fails_for_good_is_named_and_nothing_it_said_is_shown() {
    let web = Web::start();
    web.put("/x", "x", "1");
    let patience = Duration::from_millis(600);
    let settings = ReaderSettings { patience, attempt_timeout: patience / 3, ..settings(&web.url("/")) };
    let reading = Reading::new(&settings, &[]);
    let x = object(&web.url("/x"));
    web.fail((0..100).map(|_| Fault::Status(500)));
    let error =
        says(reading.reader.read(&x), &[&web.url("/x"), "answered 500", "`patience`", "`eyes`", "tries"]);
    assert_eq!(error.retry(), Retry::Elsewhere, "it may pass another time");
    web.state().faults.clear();
    web.fail((0..100).map(|_| Fault::Hang));
    let error = says(reading.reader.read(&x), &["nothing came within 200ms", "`attempt_timeout`"]);
    assert_eq!(error.retry(), Retry::Elsewhere);
    web.state().faults.clear();
    for (fault, parts) in [
        (Fault::Status(403), &["does not let it be read", "AWS_ACCESS_KEY_ID"][..]),
        (Fault::Status(401), &["does not let it be read"]),
        (Fault::Status(404), &["it is not there"]),
        (Fault::Status(400), &["cannot be read", "400"]),
        (Fault::Redirect("http://169.254.169.254/latest".to_owned()), &["cannot be read", "302"]),
    ] {
        web.requests();
        web.fail([fault]);
        let error = says(reading.reader.read(&x), parts);
        assert_eq!((error.retry(), web.requests().len()), (Retry::Never, 1), "{error}");
    }
    drop(web);
    let error = says(reading.reader.read(&x), &["could not be read in"]);
    assert_eq!(error.retry(), Retry::Elsewhere);
}

#[test]
fn when_everything_fails_tries_are_few() {
    let web = Web::start();
    let reading = Reading::of(&web.url("/"));
    web.state().faults = (0..10_000).map(|_| Fault::Status(503)).collect();
    let all: Vec<ObjectRef> = (0..200).map(|i| object(&web.url(&format!("/{i}")))).collect();
    says(reading.reader.read_all(&all), &["object "]);
    // 200 first tries, 100 retries saved up and 5 for each of the 5 seconds that it is patient, and more of slow machines.
    let tries = web.requests().len();
    assert!((200..=500).contains(&tries), "{tries} tries");
}

#[test]
fn what_is_too_large_is_refused_by_the_name_of_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("large"), content(300_000)).unwrap();
    let web = Web::start();
    web.put("/large", content(300_000), "1");
    let roots = [format!("file://{}", folder.path().display()), web.url("/")];
    let settings = ReaderSettings { max_bytes: Bytes::mib(1), ..ReaderSettings::new(roots.clone()) };
    let reading = Reading::new(&settings, &[]);
    for root in roots {
        let large = object(&format!("{}/large", root.trim_end_matches('/')));
        let parts = ["1200000 bytes", "limit of 1 MiB", "`eyes`", "`max_bytes`", "[options.objects]"];
        assert_eq!(says(reading.reader.read(&large), &parts).retry(), Retry::Never);
        assert_eq!(reading.reader.read_range(&large, 1_000_000, 200_000).unwrap().len(), 200_000);
        says(reading.reader.read_range(&large, 0, 1_100_000), &parts[1..]);
        let mut streamed = Vec::new();
        reading.reader.stream(&large).read_to_end(&mut streamed).unwrap();
        assert_eq!(streamed, content(300_000), "a stream is of any size");
    }
}

#[test]
fn what_many_want_is_read_once_and_so_many_at_a_time() {
    let web = Web::start();
    for i in 0..20 {
        web.put(&format!("/{i}"), content(1000 + i), "1");
    }
    web.state().slow = Duration::from_millis(50);
    let concurrency = 3;
    let reading = Reading::new(&ReaderSettings { concurrency, ..settings(&web.url("/")) }, &[]);
    let host = Host::new(2, 1).unwrap();
    let versioned = |i: u32| object(&web.url(&format!("/{i}"))).with_version("\"1\"").unwrap();
    let (tell, told) = mpsc::channel();
    for _ in 0..8 {
        let (reader, tell) = (reading.reader.clone(), tell.clone());
        let x = versioned(0);
        let work = async move { tell.send(reader.fetch(&x).await.map(|b| b.len())).unwrap() };
        host.env().spawn(Place::Network, work).detach();
    }
    drop(tell);
    assert!(told.into_iter().all(|read| read.unwrap() == 4000));
    assert_eq!((web.requests().len(), reading.counted("object-cache-hits")), (1, 7));

    let all: Vec<ObjectRef> = (0..20).chain(0..20).map(versioned).collect();
    let read = reading.reader.read_all(&all).unwrap();
    assert!(read.iter().zip((0..20).chain(0..20)).all(|(bytes, i)| *bytes == content(1000 + i)));
    assert_eq!((web.requests().len(), web.state().most), (19, 3));
    assert_eq!(reading.counted("object-reads"), 20);
    assert_eq!(reading.counted("object-cache-hits"), 7 + 21);
    assert_eq!(reading.counted("object-bytes"), (0..20).map(|i| 4 * (1000 + i)).sum::<u64>());
    assert_eq!(reading.reader.read_range(&versioned(7), 4, 4).unwrap(), 1u32.to_be_bytes().as_slice());
    assert!(web.requests().is_empty(), "a part of what is there");

    // A cache of little forgets.
    let small = ReaderSettings { cache: Bytes(10_000), ..settings(&web.url("/")) };
    let reading = Reading::new(&small, &[]);
    for i in [0, 1, 2, 2, 0] {
        reading.reader.read(&versioned(i)).unwrap();
    }
    assert_eq!(web.requests().len(), 4);
}

#[test]
fn the_error_of_a_batch_is_one_that_stays() {
    let web = Web::start();
    web.put("/x", "x", "1");
    let patience = Duration::from_millis(300);
    let reading = Reading::new(&ReaderSettings { patience, ..settings(&web.url("/")) }, &[]);
    let dead = object("http://127.0.0.1:9/x");
    let settings =
        ReaderSettings { patience, ..ReaderSettings::new([web.url("/"), "http://127.0.0.1:9".into()]) };
    let both = Reading::new(&settings, &[]);
    let batch = [dead.clone(), object(&web.url("/x")), object(&web.url("/gone"))];
    assert_eq!(says(both.reader.read_all(&batch), &["/gone", "it is not there"]).retry(), Retry::Never);
    assert_eq!(says(both.reader.read_all(&batch[..2]), &["127.0.0.1:9"]).retry(), Retry::Elsewhere);
    says(reading.reader.read_all(&batch), &["in none of the places"]);
}

#[test]
fn nothing_outside_of_the_roots_is_read() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name);
    fs::write(outside.path().join("secret"), "secret").unwrap();
    fs::create_dir(at("in")).unwrap();
    fs::create_dir(at("inside")).unwrap();
    fs::write(at("in/x"), "x").unwrap();
    fs::write(at("inside/y"), "y").unwrap();
    std::os::unix::fs::symlink("x", at("in/link")).unwrap();
    std::os::unix::fs::symlink(outside.path(), at("in/out")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), at("in/leak")).unwrap();
    std::os::unix::fs::symlink("circle", at("in/circle")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(at("in/pipe")).status();
    let base = format!("file://{}", folder.path().display());
    let reading = Reading::of(&format!("{base}/in"));
    let read = |path: &str| reading.reader.read(&object(&format!("{base}{path}")));
    assert_eq!(read("/in/x").unwrap(), &b"x"[..]);
    assert_eq!(read("/in/link").unwrap(), &b"x"[..], "links may lead to what is inside");
    for (path, parts) in [
        ("/inside/y", &["in none of the places", "`roots`", "[options.objects]"][..]),
        ("/in/out/secret", &["it is a link to", "in none of the places"]),
        ("/in/leak", &["it is a link to"]),
        ("/in/circle", &["object "]),
        ("/in", &["no file"]),
        ("/in/x/y", &["it is not there"]),
    ] {
        says(read(path), parts);
    }
    if made.is_ok_and(|m| m.success()) {
        says(read("/in/pipe"), &["it is no file"]);
    }
    for uri in ["s3://bucket/x", "https://host/x", "http://host/x"] {
        says(reading.reader.read(&object(uri)), &["in none of the places"]);
    }
    assert!(ObjectRef::new(format!("{base}/in/../inside/y")).is_err());
    for (root, part) in [
        (format!("{base}/none"), "is file://"),
        ("ftp://host/x".to_owned(), "can be read"),
        ("file://host/x".to_owned(), "three slashes"),
        ("s3://me:hush-hush@bucket".to_owned(), "may hold a key"),
        ("images".to_owned(), "no uri"),
    ] {
        let opened = ObjectReader::open("eyes", &ReaderSettings::new([root]), &[], &Counters::default());
        says(opened, &["`eyes`", part]);
    }
    let none: [&str; 0] = [];
    says(
        ObjectReader::open("eyes", &ReaderSettings::new(none), &[], &Counters::default()),
        &["no roots", "`eyes`"],
    );
}
