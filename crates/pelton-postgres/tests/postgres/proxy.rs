//! Between sink and server: hands everything on, and loses the server's answer to a commit when asked to.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pelton_env::{Env, Place, Task};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// A whole message of the protocol: a simple query.
const COMMIT: &[u8] = b"Q\0\0\0\x0bcommit\0";

pub(crate) struct Proxy {
    pub(crate) port: u16,
    /// Answers to commits that are still to be lost.
    losing: Arc<AtomicU32>,
    _task: Task,
}

impl Proxy {
    pub(crate) async fn start(env: &Env, server: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let losing = Arc::new(AtomicU32::new(0));
        let (own, shared) = (env.clone(), losing.clone());
        let task = env.spawn(Place::Network, async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await.unwrap();
                own.spawn(Place::Network, serve(client, server, shared.clone())).detach();
            }
        });
        Proxy { port, losing, _task: task }
    }

    pub(crate) fn lose(&self, answers: u32) {
        self.losing.store(answers, Ordering::SeqCst);
    }

    pub(crate) fn still_to_lose(&self) -> u32 {
        self.losing.load(Ordering::SeqCst)
    }
}

async fn serve(client: TcpStream, server: TcpStream, losing: Arc<AtomicU32>) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let cut = Arc::new(AtomicU32::new(0));
    tokio::select! {
        () = requests(from_client, to_server, losing, cut.clone()) => {}
        () = answers(from_server, to_client, cut) => {}
    }
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    losing: Arc<AtomicU32>,
    cut: Arc<AtomicU32>,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if buffer[..n].ends_with(COMMIT) {
            let take = |left: u32| left.checked_sub(1);
            if losing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
                cut.store(1, Ordering::SeqCst);
            }
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, cut: Arc<AtomicU32>) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        // The server has done it, and nobody hears of it.
        if cut.load(Ordering::SeqCst) == 1 || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
