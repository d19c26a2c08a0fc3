//! What the Java package calls. Each function of `Native.java` is one here; what they hand out are numbers, which mean nothing to any
//! other process or library.
//!
//! `client.rs` is a call operator's client, `values.rs` how rows cross, and `pelton-agent` the other half: places in a pool of instances.

mod client;
mod table;
mod values;

use std::time::Duration;

use jni::EnvUnowned;
use jni::errors::ThrowRuntimeExAndDefault;
use jni::objects::{JByteArray, JClass};
use jni::sys::{jint, jlong};
use pelton_agent::{Hold, Order, tell};
use pelton_core::{Error, Result};
use pelton_discovery::rundir;

use crate::client::{Client, Settings};
use crate::table::{CLIENTS, HOLDS};

/// What Java is told, as the text of an exception.
#[derive(Debug)]
struct Failed(Error);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failed {}

impl From<jni::errors::Error> for Failed {
    fn from(e: jni::errors::Error) -> Self {
        Failed(Error::internal(format!("the Java virtual machine: {e}")))
    }
}

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        Failed(e)
    }
}

fn read<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|e| Error::internal(format!("settings from Java: {e}")))
}

fn millis(millis: jlong) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// Texts, as Java reads them.
fn texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut out = Vec::new();
    texts.into_iter().for_each(|text| values::put_string(&mut out, text));
    out
}

/// The private folder of this user for what runs on this machine; made if it is not there.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the Java virtual machine finds functions by their names")]
pub extern "system" fn Java_pelton_flink_Native_folder<'a>(
    mut env: EnvUnowned<'a>,
    _class: JClass<'a>,
) -> JByteArray<'a> {
    env.with_env(|env| -> Result<_, Failed> {
        let base = rundir::base();
        rundir::make(&base)?;
        Ok(env.byte_array_from_slice(base.as_os_str().as_encoded_bytes())?)
    })
    .resolve::<ThrowRuntimeExAndDefault>()
}

/// Checks an order, and says what it comes to: the service's name, the pool's, and the number of instances.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the Java virtual machine finds functions by their names")]
pub extern "system" fn Java_pelton_flink_Native_check<'a>(
    mut env: EnvUnowned<'a>,
    _class: JClass<'a>,
    order: JByteArray<'a>,
) -> JByteArray<'a> {
    env.with_env(|env| -> Result<_, Failed> {
        let order: Order = read(&env.convert_byte_array(&order)?)?;
        let declaration = order.declaration()?;
        let instances = declaration.instances.initial.to_string();
        let checked = texts([declaration.name.as_str(), &order.name()?, &instances]);
        Ok(env.byte_array_from_slice(&checked)?)
    })
    .resolve::<ThrowRuntimeExAndDefault>()
}

/// Takes a place in the pool: a number, or 0 if no agent has it.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the Java virtual machine finds functions by their names")]
pub extern "system" fn Java_pelton_flink_Native_hold<'a>(
    mut env: EnvUnowned<'a>,
    _class: JClass<'a>,
    order: JByteArray<'a>,
) -> jlong {
    env.with_env(|env| -> Result<_, Failed> {
        let order: Order = read(&env.convert_byte_array(&order)?)?;
        Ok(Hold::take(&order)?.map_or(0, |hold| HOLDS.put(hold)))
    })
    .resolve::<ThrowRuntimeExAndDefault>()
}

/// What the agent says next, as its kind and its words, or an empty array if it says nothing for so long. Throws when it is gone.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the Java virtual machine finds functions by their names")]
pub extern "system" fn Java_pelton_flink_Native_hear<'a>(
    mut env: EnvUnowned<'a>,
    _class: JClass<'a>,
    hold: jlong,
    wait: jlong,
) -> JByteArray<'a> {
    env.with_env(|env| -> Result<_, Failed> {
        let hold = HOLDS.get(hold)?;
        let mut hold = hold.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let said = hold.next(millis(wait))?.map_or_else(Vec::new, |said| said_as_texts(&said));
        Ok(env.byte_array_from_slice(&said)?)
    })
    .resolve::<ThrowRuntimeExAndDefault>()
}

/// `{KIND: WORDS}` as two texts.
fn said_as_texts(said: &str) -> Vec<u8> {
    let said: serde_json::Map<String, serde_json::Value> = serde_json::from_str(said).unwrap_or_default();
    let Some((kind, words)) = said.into_iter().next() else { return Vec::new() };
    match words {
        serde_json::Value::String(words) => texts([kind.as_str(), &words]),
        words => texts([kind.as_str(), &words.to_string()]),
    }
}

/// Gives a place back: for good, or left to the lease.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the Java virtual machine finds functions by their names")]
pub extern "system" fn Java_pelton_flink_Native_release<'a>(
    mut env: EnvUnowned<'a>,
    _class: JClass<'a>,
    hold: jlong,
    good: jni::sys::jboolean,
) {
    env.with_env(|_| -> Result<_, Failed> {
        let hold = HOLDS.remove(hold).and_then(std::sync::Arc::into_inner);
        if let (Some(hold), true) = (hold, good) {
            hold.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).release();
        }
        Ok(())
    })
    .resolve::<ThrowRuntimeExAndDefault>()
}

/// Lets the agent tell all who hold the pool. Says whether it is there.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the Java virtual machine finds functions by their names")]
pub extern "system" fn Java_pelton_flink_Native_tell<'a>(
    mut env: EnvUnowned<'a>,
    _class: JClass<'a>,
    order: JByteArray<'a>,
    what: JByteArray<'a>,
) -> jni::sys::jboolean {
    env.with_env(|env| -> Result<_, Failed> {
        let order: Order = read(&env.convert_byte_array(&order)?)?;
        let what = String::from_utf8_lossy(&env.convert_byte_array(&what)?).into_owned();
        Ok(tell(&order, &what.into())?)
    })
    .resolve::<ThrowRuntimeExAndDefault>()
}

/// Reaches a service: a number, or 0 if it is not there yet.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the Java virtual machine finds functions by their names")]
pub extern "system" fn Java_pelton_flink_Native_connect<'a>(
    mut env: EnvUnowned<'a>,
    _class: JClass<'a>,
    settings: JByteArray<'a>,
) -> jlong {
    env.with_env(|env| -> Result<_, Failed> {
        let settings: Settings = read(&env.convert_byte_array(&settings)?)?;
        Ok(Client::connect(settings)?.map_or(0, |client| CLIENTS.put(client)))
    })
    .resolve::<ThrowRuntimeExAndDefault>()
}

/// The names of the columns that answers have.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the Java virtual machine finds functions by their names")]
pub extern "system" fn Java_pelton_flink_Native_output<'a>(
    mut env: EnvUnowned<'a>,
    _class: JClass<'a>,
    client: jlong,
) -> JByteArray<'a> {
    env.with_env(|env| -> Result<_, Failed> {
        let names = texts(CLIENTS.get(client)?.output());
        Ok(env.byte_array_from_slice(&names)?)
    })
    .resolve::<ThrowRuntimeExAndDefault>()
}

/// Hands requests over.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the Java virtual machine finds functions by their names")]
pub extern "system" fn Java_pelton_flink_Native_submit<'a>(
    mut env: EnvUnowned<'a>,
    _class: JClass<'a>,
    client: jlong,
    block: JByteArray<'a>,
    length: jint,
) {
    env.with_env(|env| -> Result<_, Failed> {
        let mut bytes = vec![0i8; usize::try_from(length).unwrap_or(0)];
        block.get_region(env, 0, &mut bytes)?;
        let bytes: Vec<u8> = bytes.into_iter().map(|b| b as u8).collect();
        Ok(CLIENTS.get(client)?.submit(&bytes)?)
    })
    .resolve::<ThrowRuntimeExAndDefault>()
}

/// What has ended, about so many bytes of it; an empty array if nothing does for so long.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the Java virtual machine finds functions by their names")]
pub extern "system" fn Java_pelton_flink_Native_take<'a>(
    mut env: EnvUnowned<'a>,
    _class: JClass<'a>,
    client: jlong,
    wait: jlong,
    most: jint,
) -> JByteArray<'a> {
    env.with_env(|env| -> Result<_, Failed> {
        let ended = CLIENTS.get(client)?.take(millis(wait), usize::try_from(most).unwrap_or(0));
        Ok(env.byte_array_from_slice(&ended)?)
    })
    .resolve::<ThrowRuntimeExAndDefault>()
}

/// Lets the instances forget requests that have ended.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the Java virtual machine finds functions by their names")]
pub extern "system" fn Java_pelton_flink_Native_acknowledge<'a>(
    mut env: EnvUnowned<'a>,
    _class: JClass<'a>,
    client: jlong,
    ids: JByteArray<'a>,
) {
    env.with_env(|env| -> Result<_, Failed> {
        let ids = env.convert_byte_array(&ids)?;
        Ok(CLIENTS.get(client)?.acknowledge(&ids)?)
    })
    .resolve::<ThrowRuntimeExAndDefault>()
}

/// Ends a client. What it has not delivered goes on at the instances, for whoever presents the ids again.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the Java virtual machine finds functions by their names")]
pub extern "system" fn Java_pelton_flink_Native_close<'a>(
    mut env: EnvUnowned<'a>,
    _class: JClass<'a>,
    client: jlong,
) {
    env.with_env(|_| -> Result<_, Failed> {
        drop(CLIENTS.remove(client));
        Ok(())
    })
    .resolve::<ThrowRuntimeExAndDefault>()
}
