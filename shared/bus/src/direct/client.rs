//! The client's end: connects to a host and shows its token.

use std::{io, sync::Arc};

use contract::{
    SessionId,
    direct::{CONNECT_LIMIT, Direct, GO, GREETING, WELCOME},
};
use futures::{StreamExt, stream::FuturesUnordered};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use super::{UNHEARD_MAX, provider, settle};
use crate::ByteStream;

/// The most addresses that are tried.
const ADDRESSES_MAX: usize = 8;

/// Connects to the first of a host's addresses that answers. When this returns a stream, the session is on it.
///
/// # Errors
/// None answered within [`CONNECT_LIMIT`], it was another host, or it does not know the token: the session is still on the bus.
pub async fn connect(direct: &Direct, session: SessionId) -> io::Result<ByteStream> {
    let greeted = timeout(CONNECT_LIMIT, async {
        let mut tls = greet(direct, session).await?;
        tls.write_all(&[GO]).await?;
        tls.flush().await?;
        Ok::<_, io::Error>(tls)
    });
    let tls = greeted.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(ByteStream::direct(tls))
}

async fn greet(direct: &Direct, session: SessionId) -> io::Result<TlsStream<TcpStream>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the host's {what} is malformed"));
    let token = hex::decode(&direct.token.0).ok().filter(|token| token.len() == 32).ok_or_else(|| wrong("token"))?;
    let fingerprint = hex::decode(&direct.fingerprint).map_err(|_| wrong("fingerprint"))?;
    let connection = first(&direct.addresses).await?;
    settle(&connection, UNHEARD_MAX)?;
    let verifier = Pinned { fingerprint, provider: provider() };
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // The name is not looked at: the fingerprint says who it is.
    let name = ServerName::try_from("warren").map_err(io::Error::other)?;
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, connection).await?;
    let mut greeting = GREETING.to_vec();
    greeting.extend_from_slice(session.0.as_bytes());
    greeting.extend_from_slice(&token);
    tls.write_all(&greeting).await?;
    tls.flush().await?;
    match tls.read_u8().await? {
        WELCOME => Ok(tls),
        _ => Err(wrong("answer")),
    }
}

/// The first of the addresses that takes a connection; all are tried at once.
async fn first(addresses: &[String]) -> io::Result<TcpStream> {
    let mut trying: FuturesUnordered<_> =
        addresses.iter().take(ADDRESSES_MAX).map(|address| TcpStream::connect(address.as_str())).collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host names no address");
    while let Some(tried) = trying.next().await {
        match tried {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Takes one certificate and no other.
#[derive(Debug)]
struct Pinned {
    fingerprint: Vec<u8>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if Sha256::digest(end_entity)[..] == self.fingerprint[..] {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("this is another host than the one that offered the connection".to_owned()))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
