//! Makes the certificates of a deployment: an authority, once; a certificate for those who serve and one for those who call.
//!
//! In one folder: `ca.pem` for everybody; `ca-key.pem`, which stays where it was made; `server.pem` and `client.pem`, each with its key.
//! Made again, the authority and all keys stay, and the certificates are new.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pelton_core::{Error, Result, access};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;

use crate::files::Identity;

/// How long an authority is valid: it cannot be renewed without giving everybody a new one.
const AUTHORITY_DAYS: u32 = 3650;
/// Certificates are valid from a little before now, for clocks that are behind.
const BEFORE: Duration = Duration::hours(1);
const AUTHORITY_KEY: &str = "ca-key.pem";
/// Below this, whoever uses a certificate is told to renew it.
pub const SOON_DAYS: i64 = 30;

/// What shall be made.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub folder: PathBuf,
    /// The names and numbers by which the server is reached. None: those of the certificate that is there.
    pub hosts: Vec<String>,
    /// What the server's files are called: `NAME.pem`, `NAME-key.pem`.
    pub name: String,
    /// How long certificates are valid.
    pub days: u32,
}

/// One certificate in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    pub path: PathBuf,
    /// Whom it is for.
    pub hosts: Vec<String>,
    /// As a day: 2027-11-21.
    pub until: String,
    /// Days until then.
    pub days: i64,
    /// It was there, and stays as it is.
    pub kept: bool,
}

/// The server's files in a folder.
pub fn server(folder: &Path, name: &str) -> Identity {
    Identity { certificate: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}-key.pem")) }
}

/// Makes what is missing, and certificates anew. `now`: milliseconds since 1970.
pub fn make(wanted: &Wanted, now: u64, secret: &str) -> Result<Vec<Made>> {
    let Wanted { folder, hosts, name, days } = wanted;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name == "ca" || name == "client" || !name.chars().all(plain) {
        return Err(Error::invalid(format!(
            "`{name}` is no name for a server's files; letters, digits, `-`, `_` and `.`, and neither ca nor client"
        )));
    }
    if *days == 0 || *days >= AUTHORITY_DAYS {
        return Err(Error::invalid(format!(
            "a certificate can be valid for 1 to {} days, not {days}",
            AUTHORITY_DAYS - 1
        )));
    }
    let now = OffsetDateTime::from_unix_timestamp((now / 1000) as i64)
        .map_err(|e| Error::internal(format!("the clock is off: {e}")))?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| at(folder, e))?;
    let files = server(folder, name);
    let hosts = match hosts.is_empty() {
        false => hosts.clone(),
        true if files.certificate.exists() => look(&files.certificate, now)?.hosts,
        true => {
            return Err(Error::invalid(format!(
                "{} is not there yet: say by what names or numbers the server is reached, with --host",
                files.certificate.display()
            )));
        }
    };
    let (issuer, authority) = issuer(folder, now, secret)?;
    // Not beyond the authority's own end.
    let until = now + Duration::days(i64::from(*days).min(authority.days));
    let issue = |identity: &Identity, hosts: &[String], common: &str, purpose| {
        let mut params = CertificateParams::new(hosts.to_vec())
            .map_err(|e| Error::invalid(format!("`{}` cannot be names of hosts: {e}", hosts.join("`, `"))))?;
        params.distinguished_name = called(common);
        (params.not_before, params.not_after) = (now - BEFORE, until);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let key = key(&identity.key)?;
        let certificate = params.signed_by(&key, &issuer).map_err(made)?;
        write(&identity.certificate, certificate.pem().as_bytes(), 0o644)?;
        look(&identity.certificate, now)
    };
    let [certificate, client_key] = access::CLIENT.map(|name| folder.join(name));
    let client = Identity { certificate, key: client_key };
    Ok(vec![
        authority,
        issue(&files, &hosts, &hosts[0], ExtendedKeyUsagePurpose::ServerAuth)?,
        issue(&client, &[], "pelton client", ExtendedKeyUsagePurpose::ClientAuth)?,
    ])
}

/// The authority of a folder, which is made if there is none.
fn issuer(folder: &Path, now: OffsetDateTime, secret: &str) -> Result<(Issuer<'static, KeyPair>, Made)> {
    let path = folder.join(access::AUTHORITY);
    let key_path = folder.join(AUTHORITY_KEY);
    if path.exists() {
        if !key_path.exists() {
            return Err(Error::invalid(format!(
                "{} is there without its key {AUTHORITY_KEY}: run this where the authority was made, or name another --folder",
                path.display()
            )));
        }
        let known = look(&path, now)?;
        if known.days < 1 {
            return Err(Error::invalid(format!(
                "the authority {} ended on {}; remove it and {AUTHORITY_KEY} to make another, and give its ca.pem to everybody",
                path.display(),
                known.until
            )));
        }
        let pem = fs::read_to_string(&path).map_err(|e| at(&path, e))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key(&key_path)?)
            .map_err(|e| Error::invalid(format!("{} cannot be used: {e}", path.display())))?;
        return Ok((issuer, Made { kept: true, ..known }));
    }
    let mut params = CertificateParams::default();
    // A name of its own: two authorities of one name could not be told apart.
    params.distinguished_name = called(&format!("pelton authority {secret:.8}"));
    (params.not_before, params.not_after) = (now - BEFORE, now + Duration::days(AUTHORITY_DAYS.into()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = key(&key_path)?;
    let certificate = params.self_signed(&key).map_err(made)?;
    write(&path, certificate.pem().as_bytes(), 0o644)?;
    Ok((Issuer::new(params, key), look(&path, now)?))
}

fn called(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// The key in a file, which is made if there is none.
fn key(path: &Path) -> Result<KeyPair> {
    if path.exists() {
        let pem = fs::read_to_string(path).map_err(|e| at(path, e))?;
        return KeyPair::from_pem(&pem).map_err(|_| {
            Error::invalid(format!(
                "{} holds no key that can be used; remove it to have another made",
                path.display()
            ))
        });
    }
    let key = KeyPair::generate().map_err(made)?;
    write(path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

/// A certificate's hosts and its end.
pub fn look(path: &Path, now: OffsetDateTime) -> Result<Made> {
    let unreadable =
        || Error::invalid(format!("{} is no certificate; remove it to have another made", path.display()));
    let bytes = fs::read(path).map_err(|e| at(path, e))?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&bytes).map_err(|_| unreadable())?;
    let certificate = pem.parse_x509().map_err(|_| unreadable())?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let hosts = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => number(bytes),
        _ => None,
    });
    let until = OffsetDateTime::from_unix_timestamp(certificate.validity().not_after.timestamp())
        .map_err(|_| unreadable())?;
    Ok(Made {
        path: path.to_owned(),
        hosts: hosts.collect(),
        until: until.date().to_string(),
        days: (until - now).whole_days(),
        kept: false,
    })
}

/// A certificate at a time in milliseconds since 1970.
pub fn look_at(path: &Path, now: u64) -> Result<Made> {
    let now = OffsetDateTime::from_unix_timestamp((now / 1000) as i64)
        .map_err(|e| Error::internal(format!("the clock is off: {e}")))?;
    look(path, now)
}

fn number(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|b| std::net::Ipv4Addr::from(b).to_string());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|b| std::net::Ipv6Addr::from(b).to_string())).ok()
}

/// A file that appears whole, and that only its mode's users can ever read.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let draft = path.with_extension("pem.tmp");
    let _ = fs::remove_file(&draft);
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft);
    let put = |mut file: File| {
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    file.and_then(put).map_err(|e| at(path, e))
}

fn at(path: &Path, e: io::Error) -> Error {
    Error::from(e).context(path.display())
}

fn made(e: rcgen::Error) -> Error {
    Error::internal(format!("making a certificate: {e}"))
}
