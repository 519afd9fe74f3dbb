//! Certificates, and TLS over a connection.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::Acceptor;

use crate::web::Web;
use crate::{http1, http2};

const HANDSHAKE: Duration = Duration::from_mins(1);
/// Its name in ALPN.
const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// How connections are answered, by the name that they ask for.
pub(crate) struct Tls {
    /// Of the authority that certifies the others.
    pub(crate) pem: String,
    /// h2 or HTTP/1.1, as the client likes.
    new: Arc<ServerConfig>,
    /// HTTP/1.1 only.
    old: Arc<ServerConfig>,
    /// With a certificate for other names.
    wrong: Arc<ServerConfig>,
}

impl Tls {
    /// With a certificate for `hosts`, and for all that end with `.goaway.test`.
    pub(crate) fn new(hosts: BTreeSet<String>) -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "Chaos authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let pem = authority.self_signed(&key).map_err(io::Error::other)?.pem();
        let issuer = Issuer::new(authority, key);

        let names: Vec<String> = hosts.into_iter().chain(["*.goaway.test".to_owned()]).collect();
        let right = certify(names, &issuer)?;
        let wrong = certify(vec!["elsewhere.test".to_owned(), "*.elsewhere.test".to_owned()], &issuer)?;
        Ok(Self {
            pem,
            new: config(&right, &[H2, HTTP1])?,
            old: config(&right, &[HTTP1])?,
            wrong: config(&wrong, &[H2, HTTP1])?,
        })
    }

    fn config(&self, host: &str) -> &Arc<ServerConfig> {
        let is_numbered =
            |prefix: &str| host.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        if is_numbered("wrongname") {
            &self.wrong
        } else if is_numbered("t") {
            &self.old
        } else {
            &self.new
        }
    }

    /// Serves a connection until one of both sides has enough.
    pub(crate) async fn serve(&self, socket: TcpStream, web: &Arc<Web>) {
        let Ok(Ok(start)) = timeout(HANDSHAKE, LazyConfigAcceptor::new(Acceptor::default(), socket)).await else {
            return;
        };
        let config = Arc::clone(self.config(start.client_hello().server_name().unwrap_or_default()));
        let Ok(Ok(wire)) = timeout(HANDSHAKE, start.into_stream(config)).await else { return };
        if wire.get_ref().1.alpn_protocol() == Some(H2) {
            http2::serve(wire, web).await;
        } else {
            http1::serve(wire, web).await;
        }
    }
}

type Certified = (CertificateDer<'static>, Vec<u8>);

fn certify(names: Vec<String>, issuer: &Issuer<'_, KeyPair>) -> io::Result<Certified> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let mut parameters = CertificateParams::new(names).map_err(io::Error::other)?;
    parameters.distinguished_name.push(DnType::CommonName, "Chaos");
    let certificate = parameters.signed_by(&key, issuer).map_err(io::Error::other)?;
    Ok((certificate.der().clone(), key.serialize_der()))
}

fn config((certificate, key): &Certified, protocols: &[&[u8]]) -> io::Result<Arc<ServerConfig>> {
    // Named here: a process may have several, and none of them may be the default.
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], PrivateKeyDer::Pkcs8(key.clone().into()))
        .map_err(io::Error::other)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}
