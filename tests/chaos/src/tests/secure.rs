//! Behaviours over TLS, by h2 and by HTTP/1.1.

use std::io::ErrorKind;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::{Got, address_of, get, host_of, origin_of, request, target_of};
use crate::Origin;
use crate::behaviour::{Behaviour as B, Expected};
use crate::picture::sha256;

async fn connect(origin: &Origin, host: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    let pem = origin.certificate_pem().unwrap();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let socket = TcpStream::connect(address_of(origin, host)).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(host.to_owned()).unwrap(), socket).await
}

/// Over HTTP/1.1, to the end of the connection.
async fn get1(origin: &Origin, row: usize) -> Got {
    let host = host_of(origin, row);
    let mut stream = connect(origin, &host).await.unwrap();
    assert_ne!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "{host}");
    stream.write_all(&request(&host, &target_of(origin, row), "Connection: close\r\n")).await.unwrap();
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).await.err().map(|error| error.kind());
    Got::new(&bytes, error)
}

struct Client {
    requests: SendRequest<Bytes>,
    connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
    host: String,
}

async fn client(origin: &Origin, row: usize) -> Client {
    let host = host_of(origin, row);
    let stream = connect(origin, &host).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "{host}");
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    Client { requests, connection: tokio::spawn(connection), host }
}

impl Client {
    async fn get(&self, target: &str) -> Result<(u16, Vec<u8>), (usize, h2::Error)> {
        let mut requests = self.requests.clone().ready().await.map_err(|error| (0, error))?;
        let request = http::Request::get(format!("https://{}{target}", self.host)).body(()).unwrap();
        let (answer, _) = requests.send_request(request, true).map_err(|error| (0, error))?;
        let (head, mut stream) = answer.await.map_err(|error| (0, error))?.into_parts();
        let mut body = Vec::new();
        while let Some(part) = stream.data().await {
            let part = part.map_err(|error| (body.len(), error))?;
            stream.flow_control().release_capacity(part.len()).unwrap();
            body.extend(part);
        }
        Ok((head.status.as_u16(), body))
    }
}

fn hash(origin: &Origin, row: usize) -> &str {
    match &origin.rows()[row].expected {
        Expected::Kept { sha256, .. } => sha256,
        Expected::Refused(reason) => reason,
    }
}

#[tokio::test]
async fn streams_come_in_whole_or_end_as_they_are_said_to() {
    let behaviours = [B::TlsJpeg, B::TlsPng, B::TlsNotFound, B::TlsReset, B::TlsResetOnce, B::TlsGoAway];
    let origin = origin_of(&behaviours);
    for (row, behaviour) in behaviours.into_iter().enumerate() {
        let client = client(&origin, row).await;
        let target = target_of(&origin, row);
        let (first, second) = (client.get(&target).await, client.get(&target).await);
        let kept = |got: &Result<(u16, Vec<u8>), _>| {
            got.as_ref().is_ok_and(|(status, body)| *status == 200 && sha256(body) == hash(&origin, row))
        };
        let reset = |got: &Result<(u16, Vec<u8>), (usize, h2::Error)>| {
            got.as_ref().is_err_and(|(came, error)| *came > 400 && error.is_reset())
        };
        match behaviour {
            B::TlsNotFound => assert_eq!((first.unwrap().0, second.unwrap().0), (404, 404)),
            B::TlsReset => assert!(reset(&first) && reset(&second), "{first:?}"),
            B::TlsResetOnce => assert!(reset(&first) && kept(&second), "{first:?}"),
            B::TlsGoAway => {
                assert!(kept(&first), "{first:?}");
                // No more than what was under way; where the second request was sent before the news came, the socket is reset.
                let ended = client.connection.await.unwrap();
                assert!(ended.as_ref().err().is_none_or(|error| error.is_io() || error.is_go_away()), "{ended:?}");
            }
            _ => assert!(kept(&first) && kept(&second), "{behaviour:?}: {first:?}"),
        }
    }
}

#[tokio::test]
async fn a_connection_that_goes_away_takes_its_streams_along_once() {
    let origin = origin_of(&[B::TlsGoAwayAbrupt; 8]);
    for row in 0..8 {
        let target = target_of(&origin, row);
        let (came, error) = client(&origin, row).await.get(&target).await.unwrap_err();
        assert!(came > 400 && (error.is_go_away() || error.is_io()), "{came}: {error:?}");
        let (status, body) = client(&origin, row).await.get(&target).await.unwrap();
        assert_eq!((status, sha256(&body).as_str()), (200, hash(&origin, row)));
        assert_eq!((origin.served().requests[row], origin.served().pictures[row]), (2, 1));
    }
}

#[tokio::test]
async fn old_servers_wrong_names_and_no_tls_at_all() {
    let origin = origin_of(&[B::TlsHttp1, B::TlsCut, B::TlsWrongHost, B::TlsMissing, B::RedirectTls]);
    let got = get1(&origin, 0).await;
    assert_eq!((got.error, sha256(&got.body).as_str()), (None, hash(&origin, 0)));
    let got = get1(&origin, 1).await;
    assert_eq!((got.error, got.header("content-length")), (Some(ErrorKind::UnexpectedEof), None));
    assert!(got.body.len() > 1000);
    let error = |host: String| {
        let origin = &origin;
        async move { connect(origin, &host).await.unwrap_err().to_string() }
    };
    let wrong = error(host_of(&origin, 2)).await;
    assert!(wrong.contains("not valid for name"), "{wrong}");
    let absent = error(host_of(&origin, 3)).await;
    assert!(absent.contains("corrupt message"), "{absent}");
    let host = host_of(&origin, 4);
    let got = get(address_of(&origin, &host), &host, &target_of(&origin, 4));
    let location = got.header("location").unwrap();
    let (host, _) = location.strip_prefix("https://").unwrap().split_once('/').unwrap();
    assert!(connect(&origin, host).await.is_ok());
}
