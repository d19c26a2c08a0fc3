//! What the making of certificates leaves in a folder.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pelton_core::Result;
use pelton_tls::certificates::{Made, Wanted, make};

const DAY: u64 = 24 * 3600 * 1000;
/// 21 November 2026.
const NOW: u64 = 1_795_219_200_000;

fn again(folder: &Path, hosts: &[&str], days: u32, now: u64) -> Result<Vec<Made>> {
    let hosts = hosts.iter().map(|h| (*h).to_owned()).collect();
    let wanted = Wanted { folder: folder.to_owned(), hosts, name: "server".into(), days };
    make(&wanted, now, "0123456789abcdef0123456789abcdef")
}

fn content(folder: &Path) -> BTreeMap<String, (u32, String)> {
    let files = fs::read_dir(folder).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        let text = fs::read_to_string(entry.path()).unwrap();
        (entry.file_name().into_string().unwrap(), (mode, text))
    });
    files.collect()
}

#[test]
fn keys_are_for_their_owner_alone_and_stay_when_certificates_are_renewed() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("certificates");
    let made = again(&folder, &["gpu1", "10.0.0.7", "fe80::1"], 365, NOW).unwrap();
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let shown: Vec<String> = made.iter().map(|m| format!("{} {:?} {}", m.until, m.hosts, m.kept)).collect();
    assert_eq!(
        shown,
        [
            "2036-11-18 [] false",
            "2027-11-21 [\"gpu1\", \"10.0.0.7\", \"fe80::1\"] false",
            "2027-11-21 [] false"
        ]
    );
    let first = content(&folder);
    let modes: Vec<String> = first.iter().map(|(name, (mode, _))| format!("{name} {mode:o}")).collect();
    assert_eq!(
        modes,
        [
            "ca-key.pem 600",
            "ca.pem 644",
            "client-key.pem 600",
            "client.pem 644",
            "server-key.pem 600",
            "server.pem 644"
        ]
    );

    let made = again(&folder, &[], 30, NOW + 300 * DAY).unwrap();
    assert!(made[0].kept && !made[1].kept);
    assert_eq!(made[1].hosts, ["gpu1", "10.0.0.7", "fe80::1"], "as before");
    assert_eq!((made[1].until.as_str(), made[1].days), ("2027-10-17", 30));
    let second = content(&folder);
    for (name, before) in &first {
        let renewed = ["server.pem", "client.pem"].contains(&name.as_str());
        assert_eq!(second[name] != *before, renewed, "{name}");
    }
    assert_eq!(again(&folder, &["gpu2"], 30, NOW).unwrap()[1].hosts, ["gpu2"], "others, if others are named");
}

#[test]
fn what_cannot_be_made_is_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("c");
    let refused = |made: Result<Vec<Made>>, word: &str| {
        let error = made.expect_err(word).to_string();
        assert!(error.contains(word), "`{word}` is not in: {error}");
    };
    refused(again(&folder, &[], 365, NOW), "--host");
    refused(again(&folder, &["a"], 0, NOW), "1 to 3649 days");
    refused(again(&folder, &["gerät"], 365, NOW), "`gerät`");
    again(&folder, &["a"], 365, NOW).unwrap();
    refused(again(&folder, &["a"], 365, NOW + 3650 * DAY), "ended on 2036-11-18");
    // Not beyond the end of the authority.
    assert_eq!(again(&folder, &["a"], 365, NOW + 3600 * DAY).unwrap()[1].until, "2036-11-18");
    fs::write(folder.join("server-key.pem"), "rubbish").unwrap();
    refused(again(&folder, &["a"], 365, NOW), "server-key.pem holds no key");
    fs::remove_file(folder.join("ca-key.pem")).unwrap();
    refused(again(&folder, &["a"], 365, NOW), "without its key");
}
