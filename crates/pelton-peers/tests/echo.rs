//! The gRPC caller and server with one another, plain and with TLS, and several servers at a time.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use pelton_peers::grpc::{self, Client, Own, Security};
use pelton_peers::load::sleep;

fn serve(each: Option<Duration>, tls: Option<Own>) -> SocketAddr {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    #[expect(clippy::disallowed_methods, reason = "a server for a test")]
    tokio::spawn(async move { grpc::serve(at, each, tls).await.unwrap() });
    at
}

/// The answer, once the server listens.
async fn call(client: &mut Client, payload: &Bytes) -> Result<Bytes, String> {
    let mut answer = client.call(payload.clone()).await;
    for _ in 0..50 {
        if answer.is_ok() {
            break;
        }
        sleep(Duration::from_millis(20)).await;
        answer = client.call(payload.clone()).await;
    }
    answer
}

/// Calls with payloads of these sizes come back as they were, from `servers` servers.
async fn check(servers: usize, tls: bool, sizes: &[usize]) {
    let own = tls.then(|| grpc::certificate().unwrap());
    let security = match &own {
        Some(own) => Security::Tls { certificate: own.certificate.clone() },
        None => Security::Plain,
    };
    let addresses: Vec<SocketAddr> = (0..servers).map(|_| serve(None, own.clone())).collect();
    let mut client = Client::to(&addresses, &security).unwrap();
    for size in sizes {
        let payload: Bytes = (0..*size).map(|i| i as u8).collect::<Vec<u8>>().into();
        let answer = call(&mut client, &payload).await;
        assert!(
            answer.as_ref() == Ok(&payload),
            "{size} bytes, {servers} servers, tls: {tls}: {:?}",
            answer.err()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_come_back() {
    check(1, false, &[0, 1, 100, 10_000_000]).await;
    check(1, true, &[100, 1_000_000]).await;
    check(2, false, &[1, 2, 3, 4]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_answer_comes_whole() {
    let mut client = Client::to(&[serve(None, None)], &Security::Plain).unwrap();
    call(&mut client, &Bytes::new()).await.unwrap();
    for bytes in [0, 1, 4_000_000, 9_000_001] {
        assert_eq!(client.parts(bytes).await, Ok(()), "{bytes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_trusts_another_certificate_gets_nothing() {
    let address = serve(None, Some(grpc::certificate().unwrap()));
    let security = Security::Tls { certificate: grpc::certificate().unwrap().certificate };
    let mut client = Client::to(&[address], &security).unwrap();
    sleep(Duration::from_millis(200)).await;
    let answer = client.call(Bytes::from_static(b"x")).await;
    assert!(answer.is_err(), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn work_is_done_one_call_after_another() {
    let each = Duration::from_millis(20);
    let address = serve(Some(each), None);
    let mut client = Client::to(&[address], &Security::Plain).unwrap();
    let payload = Bytes::from_static(b"x");
    call(&mut client, &payload).await.unwrap();
    let (mut a, mut b, mut c) = (client.clone(), client.clone(), client);
    #[expect(clippy::disallowed_methods, reason = "the time that calls take")]
    let begun = std::time::Instant::now();
    let (a, b, c) = tokio::join!(a.call(payload.clone()), b.call(payload.clone()), c.call(payload.clone()));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert!(begun.elapsed() >= each * 3, "three calls took {:?}", begun.elapsed());
}
