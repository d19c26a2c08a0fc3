//! A service that is a server of other people: what its declaration says of it.
//!
//! ```toml
//! name = "embedder"
//! kind = "remote"
//!
//! [remote]
//! protocol = "openai"                # or "oip-http", "oip-grpc"
//! urls = ["http://127.0.0.1:8000"]
//! model = "all-minilm"
//! api_key_env = "EMBEDDER_KEY"       # the variable that holds the key; never the key
//!
//! [remote.methods.embed]             # only where the default is not what is meant
//! route = "embeddings"
//! ```

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The `kind` of a declaration whose service is not ours.
pub const KIND: &str = "remote";

/// Where a remote service is, and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    pub protocol: Protocol,
    /// Servers that give the same answers: `http://HOST:PORT` or `https://HOST`, with a path where the interface is not where the
    /// protocol puts it. No user, password or query.
    pub urls: Vec<String>,
    /// What the servers call the model.
    pub model: String,
    /// The model's version, where the protocol has one (`oip-*`). None: the server's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The environment variable that holds the API key, sent as a bearer token. None: no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// What is set for single methods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub methods: BTreeMap<String, RemoteMethod>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// The part of OpenAI's HTTP interface that many servers have: `/v1/embeddings`, `/v1/chat/completions`.
    #[serde(rename = "openai")]
    OpenAi,
    /// The Open Inference Protocol, version 2 (KServe, Triton, MLServer), JSON over HTTP.
    OipHttp,
    /// The same over gRPC.
    OipGrpc,
}

/// How one method is put into the protocol's words.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteMethod {
    /// `openai`: which part of the interface. None: by the method's columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
    /// `openai` chat: what goes before each prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// `openai`: more fields of the request, as they are (`temperature`, `max_tokens`); `oip-*`: parameters of the request.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// `oip-*`: the model for this method, where it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `oip-*`: tensors that are not called as the columns are, by column.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tensors: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    Embeddings,
    Chat,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::OpenAi => "openai",
            Protocol::OipHttp => "oip-http",
            Protocol::OipGrpc => "oip-grpc",
        })
    }
}

/// A server's address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    /// Without a slash at its end; empty if there is none.
    pub path: String,
}

impl Url {
    /// Reads `http://HOST[:PORT][/PATH]` or the same with https. A message never repeats what may be a password.
    pub fn parse(text: &str) -> Result<Url> {
        let bad =
            |what: &str| Err(Error::invalid(format!("{what}; write `http://HOST:PORT` or `https://HOST`")));
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return bad("a url begins with neither `http://` nor `https://`"),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return bad(
                "a url holds a user or password, which belongs into the variable that `api_key_env` names",
            );
        }
        let visible = |c: char| c.is_ascii_graphic() && !"?#\\\"<>".contains(c);
        if !rest.chars().all(visible) {
            return bad("a url holds a query, a space or another character that it cannot have");
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(six) => match six.split_once(']') {
                Some((host, port)) => (host, port),
                None => return bad("a url has `[` without `]`"),
            },
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => Some(if tls { 443 } else { 80 }),
            None => None,
            Some(port) => port.parse().ok().filter(|p| *p > 0),
        };
        let (Some(port), false) = (port, host.is_empty()) else {
            return bad("a url has no host, or a port that is not a number from 1 to 65535");
        };
        Ok(Url { tls, host: host.to_owned(), port, path: path.trim_end_matches('/').to_owned() })
    }

    /// Host and port as they stand in a `Host` header and in certificates' checks.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.tls { 443 } else { 80 } { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

impl Remote {
    /// Refuses values that cannot work, whatever the methods are.
    pub(crate) fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::invalid(what));
        if self.urls.is_empty() || self.urls.len() > 256 {
            return bad(format!("`remote.urls` has {} entries; 1 to 256", self.urls.len()));
        }
        for (i, url) in self.urls.iter().enumerate() {
            let url = Url::parse(url).map_err(|e| e.context("`remote.urls`"))?;
            if self.urls[..i].iter().any(|other| Url::parse(other).is_ok_and(|o| o == url)) {
                return bad(format!("`remote.urls` has {url} twice"));
            }
        }
        if self.model.is_empty() {
            return bad("`remote.model` is empty; write what the server calls the model".into());
        }
        if self
            .api_key_env
            .as_ref()
            .is_some_and(|v| v.is_empty() || !v.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        {
            return bad("`remote.api_key_env` is the name of an environment variable (letters, digits and `_`), not the key".into());
        }
        if self.protocol == Protocol::OpenAi && self.version.is_some() {
            return bad(
                "`remote.version` means nothing to protocol `openai`; write it into `remote.model`".into()
            );
        }
        for (name, method) in &self.methods {
            self.check_method(method).map_err(|e| e.context(format_args!("`remote.methods.{name}`")))?;
        }
        Ok(())
    }

    fn check_method(&self, method: &RemoteMethod) -> Result<()> {
        let open_ai = self.protocol == Protocol::OpenAi;
        let set = [
            ("route", method.route.is_some(), true),
            ("system", method.system.is_some(), true),
            ("model", method.model.is_some(), false),
            ("tensors", !method.tensors.is_empty(), false),
        ];
        for (field, given, for_open_ai) in set {
            if given && for_open_ai != open_ai {
                let other = if for_open_ai { "openai" } else { "oip-http` and `oip-grpc" };
                return Err(Error::invalid(format!(
                    "`{field}` is for protocol `{other}`, not for `{}`",
                    self.protocol
                )));
            }
        }
        let ours = ["model", "input", "messages", "stream", "encoding_format", "n"];
        if open_ai && let Some(field) = ours.into_iter().find(|f| method.extra.contains_key(*f)) {
            return Err(Error::invalid(format!("`extra.{field}` is set by the protocol; leave it out")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, expected) in [
            ("http://localhost", "http://localhost"),
            ("http://localhost:80/", "http://localhost"),
            ("https://host:443/a/b/", "https://host/a/b"),
            ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
            ("http://[::1]:9", "http://[::1]:9"),
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), expected, "{text}");
        }
        assert_eq!(Url::parse("https://[::1]").unwrap().port, 443);
        for (text, expected) in [
            ("localhost:80", "http://"),
            ("ftp://a", "http://"),
            ("http://", "host"),
            ("http://a:b", "port"),
            ("http://a:0", "port"),
            ("http://[::1", "`[`"),
            ("http://[::1]x", "port"),
            ("http://a/?key=1", "query"),
            ("http://me:secret@a", "password"),
        ] {
            let message = Url::parse(text).expect_err(text).to_string();
            assert!(message.contains(expected) && !message.contains("secret"), "{text}: {message}");
        }
    }
}
