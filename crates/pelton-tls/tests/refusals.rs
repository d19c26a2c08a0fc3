//! TLS over real sockets, with the link's own handshake inside: who gets in, who does not, and what each is told.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pelton_core::endpoint::Address;
use pelton_core::id::InstanceId;
use pelton_core::{BoxFuture, Bytes, Error, Kind, Result};
use pelton_env::real::Host;
use pelton_env::{Clock, Env, Guard, Network, Place, Time};
use pelton_link::{Door, Link};
use pelton_tls::certificates::{Wanted, make, server};
use pelton_tls::{Gate, Identity, Secured, Trust};
use pelton_wire::{Frame, Role, State, Status, Welcome};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TOKEN: &str = "a token for tests";
const DAY: i64 = 24 * 3600 * 1000;

/// The real clock, some days off by the calendar.
struct Off {
    clock: Arc<dyn Clock>,
    days: i64,
}

impl Clock for Off {
    fn now(&self) -> Time {
        self.clock.now()
    }
    fn sleep(&self, d: Duration) -> BoxFuture<()> {
        self.clock.sleep(d)
    }
    fn unix_millis(&self) -> u64 {
        self.clock.unix_millis().saturating_add_signed(self.days * DAY)
    }
}

struct World {
    host: Host,
    folder: TempDir,
}

impl World {
    fn new() -> World {
        World { host: Host::new(2, 1).unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    fn env(&self) -> &Env {
        self.host.env()
    }

    fn clock(&self, days: i64) -> Arc<dyn Clock> {
        Arc::new(Off { clock: self.env().clock.clone(), days })
    }

    /// A folder of certificates for these hosts.
    fn certificates(&self, name: &str, hosts: &[&str]) -> PathBuf {
        let folder = self.folder.path().join(name);
        let wanted = Wanted {
            folder: folder.clone(),
            hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
            name: "server".into(),
            days: 365,
        };
        make(&wanted, self.env().clock.unix_millis(), &self.env().entropy.secret()).unwrap();
        folder
    }

    fn gate(&self, folder: &Path, callers: Option<&Path>, days: i64) -> Gate {
        Gate::new(server(folder, "server"), callers.map(|f| f.join("ca.pem")), self.clock(days)).unwrap()
    }

    /// Something that welcomes whoever has the token, and says back what it is told. Returns its port.
    fn serve(&self, guard: Option<Arc<dyn Guard>>) -> u16 {
        let env = self.env().clone();
        let mut listener = self.host.block_on(async {
            env.network.listen(&Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).unwrap()
        });
        let Address::Tcp(at) = listener.address() else { panic!("a TCP address") };
        let tasks = env.clone();
        let listening = async move {
            while let Ok(connection) = listener.accept().await {
                let (guard, visitor) = (guard.clone(), env.clone());
                env.spawn(Place::Network, async move {
                    let connection = match guard {
                        Some(guard) => match guard.admit(connection).await {
                            Ok(connection) => connection,
                            Err(_) => return,
                        },
                        None => connection,
                    };
                    let door = Door {
                        token: TOKEN.into(),
                        max_message: Bytes::mib(1),
                        sharing: pelton_link::Sharing::NONE,
                    };
                    let Ok(caller) = door.answer(&visitor, connection).await else { return };
                    let version = caller.version;
                    let Ok(mut link) = caller.welcome(&visitor, welcome(version)).await else { return };
                    while let Ok(Some(message)) = link.receiver.next().await {
                        link.sender.send(message);
                    }
                })
                .detach();
            }
        };
        tasks.spawn(Place::Network, listening).detach();
        at.port()
    }

    fn network(&self, trust: Trust, days: i64) -> Env {
        let inner = self.env().network.clone();
        let network: Arc<dyn Network> = Arc::new(Secured::new(inner, self.clock(days), trust));
        Env { network, ..self.env().clone() }
    }

    /// Connects, and sends a megabyte there and back.
    fn call(&self, env: &Env, to: &str, token: &str) -> Result<()> {
        let to: Address = to.parse()?;
        self.host.block_on(async {
            let greeting = pelton_link::greeting(Role::Observer, token, "job", "test", 1);
            let (_, link) = pelton_link::connect(env, &to, greeting, Bytes::mib(1)).await?;
            let Link { sender, mut receiver } = link;
            let text: String = (0..1 << 20).map(|i| char::from(b'a' + (i % 23) as u8)).collect();
            sender.send(Frame::Report(text.clone()));
            match receiver.next().await? {
                Some(message) if message.frame == Frame::Report(text) => Ok(()),
                other => Err(Error::internal(format!("another answer: {:?}", other.map(|m| m.frame.kind())))),
            }
        })
    }
}

fn welcome(version: u16) -> Welcome {
    let status = Status {
        state: State::Ready,
        pid: 1,
        held: 0,
        executed: 0,
        batches: 0,
        ledger_bytes: 0,
        evicted: 0,
        standstill: Duration::ZERO,
        meter: Default::default(),
    };
    let instance = InstanceId { service: "s".into(), number: 0, incarnation: 1 };
    Welcome {
        version,
        instance,
        config: String::new(),
        methods: Vec::new(),
        max_message: Bytes::mib(1),
        status,
        segment: 0,
    }
}

fn trust(folder: &Path) -> Trust {
    Trust { authorities: folder.join("ca.pem"), identity: None }
}

fn with_identity(folder: &Path, of: &Path) -> Trust {
    let identity = Identity { certificate: of.join("client.pem"), key: of.join("client-key.pem") };
    Trust { identity: Some(identity), ..trust(folder) }
}

#[track_caller]
fn refused(called: Result<()>, kind: Kind, words: &[&str]) {
    let error = called.expect_err("must be refused");
    let message = error.message();
    assert_eq!(error.kind(), kind, "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    assert!(!message.contains(TOKEN), "{message}");
}

#[test]
fn who_is_trusted_is_spoken_to_by_name_and_by_number() {
    let world = World::new();
    let folder = world.certificates("a", &["localhost", "127.0.0.1"]);
    let port = world.serve(Some(Arc::new(world.gate(&folder, None, 0))));
    let env = world.network(trust(&folder), 0);
    for host in ["127.0.0.1", "localhost"] {
        world.call(&env, &format!("tls://{host}:{port}"), TOKEN).unwrap();
    }
    refused(world.call(&env, &format!("tls://127.0.0.1:{port}"), "another token"), Kind::Denied, &["token"]);
}

#[test]
fn a_server_that_is_not_trusted_is_told_nothing() {
    let world = World::new();
    let folder = world.certificates("a", &["gpu1", "127.0.0.1"]);
    let other = world.certificates("b", &["localhost", "127.0.0.1"]);
    let port = world.serve(Some(Arc::new(world.gate(&folder, None, 0))));
    let number = format!("tls://127.0.0.1:{port}");
    let call = |trust: Trust, days: i64, to: &str| world.call(&world.network(trust, days), to, TOKEN);
    refused(
        call(trust(&other), 0, &number),
        Kind::Denied,
        &["authority", &other.join("ca.pem").display().to_string(), &number],
    );
    refused(
        call(trust(&folder), 0, &format!("tls://localhost:{port}")),
        Kind::Denied,
        &["gpu1", "127.0.0.1", "--host localhost"],
    );
    refused(
        call(trust(&folder), 375, &number),
        Kind::Denied,
        &["expired 10 days ago", "pelton certificates"],
    );
    refused(call(trust(&folder), -3, &number), Kind::Denied, &["not valid yet", "clocks"]);
    let nothing = world.folder.path().join("nothing");
    refused(call(trust(&nothing), 0, &number), Kind::Denied, &["nothing/ca.pem", "cannot be read"]);
    fs::write(folder.join("empty.pem"), "no certificate").unwrap();
    let empty = Trust { authorities: folder.join("empty.pem"), identity: None };
    refused(call(empty, 0, &number), Kind::Denied, &["empty.pem", "holds no certificate"]);

    // A client's certificate in a server's place.
    let [certificate, key] = ["client.pem", "client-key.pem"].map(|name| folder.join(name));
    let gate = Gate::new(Identity { certificate, key }, None, world.clock(0)).unwrap();
    let port = world.serve(Some(Arc::new(gate)));
    refused(call(trust(&folder), 0, &format!("tls://127.0.0.1:{port}")), Kind::Denied, &["certificate"]);
}

#[test]
fn plain_text_and_tls_are_told_apart() {
    let world = World::new();
    let folder = world.certificates("a", &["127.0.0.1"]);
    let secured = world.serve(Some(Arc::new(world.gate(&folder, None, 0))));
    let plain = world.serve(None);
    let env = world.network(trust(&folder), 0);
    refused(
        world.call(&env, &format!("tcp://127.0.0.1:{secured}"), TOKEN),
        Kind::Protocol,
        &["speaks TLS", "write tls://", "access.certificates"],
    );
    refused(
        world.call(&env, &format!("tls://127.0.0.1:{plain}"), TOKEN),
        Kind::Protocol,
        &["does not speak TLS", "--tls", "tcp://", &plain.to_string()],
    );
    world.call(&env, &format!("tcp://127.0.0.1:{plain}"), TOKEN).unwrap();
    refused(
        world.call(world.env(), &format!("tls://127.0.0.1:{secured}"), TOKEN),
        Kind::Protocol,
        &["needs certificates"],
    );
}

#[test]
fn callers_show_certificates_where_they_have_to() {
    let world = World::new();
    let folder = world.certificates("a", &["127.0.0.1"]);
    let other = world.certificates("b", &["127.0.0.1"]);
    let port = world.serve(Some(Arc::new(world.gate(&folder, Some(&folder), 0))));
    let to = format!("tls://127.0.0.1:{port}");
    let call = |trust: Trust| world.call(&world.network(trust, 0), &to, TOKEN);
    call(with_identity(&folder, &folder)).unwrap();
    refused(call(trust(&folder)), Kind::Denied, &["wants a certificate", "access.certificate", &to]);
    refused(
        call(with_identity(&folder, &other)),
        Kind::Denied,
        &["does not accept", &other.join("client.pem").display().to_string()],
    );
    // To a server whose clock says that the caller's has expired.
    let late = world.serve(Some(Arc::new(world.gate(&folder, Some(&folder), 400))));
    let call = |to: &str, trust: Trust| world.call(&world.network(trust, 0), to, TOKEN);
    refused(
        call(&format!("tls://127.0.0.1:{late}"), with_identity(&folder, &folder)),
        Kind::Denied,
        &["does not accept", "expired", "pelton certificates"],
    );
    let mixed = Identity { certificate: folder.join("client.pem"), key: other.join("client-key.pem") };
    let mixed = Trust { identity: Some(mixed), ..trust(&folder) };
    refused(call(&to, mixed), Kind::Denied, &["do not belong together"]);
}

#[test]
fn renewed_certificates_are_used_without_a_restart() {
    let world = World::new();
    let folder = world.certificates("a", &["gpu1"]);
    let port = world.serve(Some(Arc::new(world.gate(&folder, None, 0))));
    let env = world.network(trust(&folder), 0);
    let to = format!("tls://127.0.0.1:{port}");
    refused(world.call(&env, &to, TOKEN), Kind::Denied, &["gpu1"]);
    world.certificates("a", &["gpu1", "127.0.0.1"]);
    let began = env.now();
    // It looks at its files once a second.
    while world.call(&env, &to, TOKEN).is_err() {
        assert!(env.now().since(began) < Duration::from_secs(20), "the new certificate is not used");
        world.host.block_on(env.sleep(Duration::from_millis(100)));
    }
    // What cannot be used does not take the place of what can.
    fs::write(folder.join("server.pem"), "rubbish").unwrap();
    world.host.block_on(env.sleep(Duration::from_millis(1200)));
    world.call(&env, &to, TOKEN).unwrap();
}

#[test]
fn garbage_ends_with_its_own_connection() {
    let world = World::new();
    let folder = world.certificates("a", &["127.0.0.1"]);
    let port = world.serve(Some(Arc::new(world.gate(&folder, None, 0))));
    let at = Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let env = world.network(trust(&folder), 0);
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0x16, 3, 1, 0xff, 0xff, 9, 9], &[0x16; 70_000]]
    {
        let mut connection = world.host.block_on(env.network.connect(&at)).unwrap();
        let ended = world.host.block_on(async {
            let _ = connection.write.write_all(garbage).await;
            let _ = connection.write.shutdown().await;
            let mut answer = Vec::new();
            let read = connection.read.read_to_end(&mut answer);
            env.within(Duration::from_secs(10), read).await.is_some()
        });
        assert!(ended, "{:?}", &garbage[..7]);
    }
    world.call(&env, &format!("tls://127.0.0.1:{port}"), TOKEN).unwrap();
}
