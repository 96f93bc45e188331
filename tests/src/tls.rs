//! A server's front that speaks TLS with a certificate of the test's choice, and hands what is in it on to a real server:
//! what a client does about the certificate is all that differs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::Error;

/// What a client of PostgreSQL says before it speaks TLS: length and code of an `SSLRequest`.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Authorities and the certificates that they signed, for `localhost` and 127.0.0.1, in a directory of their own.
#[derive(Debug)]
pub struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    /// Makes them: `ca` signed `good` and `expired`, `foreign-ca` signed `foreign`.
    pub fn new(name: &str) -> Result<Certificates, Error> {
        let directory = std::env::temp_dir().join(format!("certificates-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let made = Certificates { directory };
        std::fs::write(
            made.path("server.ext"),
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n\
             subjectAltName=DNS:localhost,IP:127.0.0.1\n",
        )?;
        // `openssl ca` is the one command that takes both dates of a certificate, in all versions.
        std::fs::write(made.path("index.txt"), "")?;
        std::fs::write(
            made.path("ca.conf"),
            "[ca]\ndefault_ca=test\n[test]\ndatabase=index.txt\nnew_certs_dir=.\nrand_serial=yes\nunique_subject=no\n\
             default_md=sha256\npolicy=any\n[any]\ncommonName=supplied\n",
        )?;
        for ca in ["ca", "foreign-ca"] {
            made.openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {ca}.key -out {ca}.pem -days 30 \
                 -subj /CN=test-{ca} -addext keyUsage=critical,keyCertSign,cRLSign"
            ))?;
        }
        made.openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr -subj /CN=localhost",
        )?;
        for (name, ca, end) in [
            ("good", "ca", "20480101000000Z"),
            ("expired", "ca", "20250101000000Z"),
            ("foreign", "foreign-ca", "20480101000000Z"),
        ] {
            made.openssl(&format!(
                "ca -batch -notext -config ca.conf -cert {ca}.pem -keyfile {ca}.key -in server.csr -out {name}.pem \
                 -startdate 20240101000000Z -enddate {end} -extfile server.ext"
            ))?;
        }
        Ok(made)
    }

    /// The authority that a client is to trust.
    pub fn ca_file(&self) -> String {
        self.path("ca.pem").to_string_lossy().into_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn openssl(&self, arguments: &str) -> Result<(), Error> {
        let out = Command::new("openssl").args(arguments.split(' ')).current_dir(&self.directory).output()?;
        let said = String::from_utf8_lossy(&out.stderr);
        out.status.success().then_some(()).ok_or_else(|| format!("openssl {arguments}: {said}").into())
    }

    /// How a server presents one of the certificates.
    fn server(&self, name: &str) -> Result<TlsAcceptor, Error> {
        let chain = vec![CertificateDer::from_pem_file(self.path(&format!("{name}.pem")))?];
        let key = PrivateKeyDer::from_pem_file(self.path("server.key"))?;
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

fn remove(directory: &Path) {
    let _ = std::fs::remove_dir_all(directory);
}

/// What a front has seen of its clients.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Connections that came as far as the certificate.
    pub offered: usize,
    /// Of these, the ones whose client took it.
    pub taken: usize,
    /// Why the others did not, in the words of their alerts.
    pub refusals: Vec<String>,
    /// What clients said in the clear, before or instead of TLS, but for PostgreSQL's request for TLS.
    pub plain: Vec<u8>,
}

/// The front of one server.
pub struct Front {
    /// Port that it listens on.
    pub port: u16,
    acceptor: Arc<Mutex<TlsAcceptor>>,
    seen: Arc<Mutex<Seen>>,
    listener: AbortHandle,
}

impl Front {
    /// In front of a local port, with the certificate of this name. `postgres`: clients ask for TLS first.
    pub async fn start(
        target: u16,
        certificates: &Certificates,
        certificate: &str,
        postgres: bool,
    ) -> Result<Front, Error> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let acceptor = Arc::new(Mutex::new(certificates.server(certificate)?));
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let accept = {
            let (acceptor, seen) = (Arc::clone(&acceptor), Arc::clone(&seen));
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let acceptor = acceptor.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    tokio::spawn(serve(client, target, acceptor, postgres, Arc::clone(&seen)));
                }
            }
        };
        Ok(Front { port, acceptor, seen, listener: tokio::spawn(accept).abort_handle() })
    }

    /// Presents another certificate from now on.
    pub fn present(&self, certificates: &Certificates, certificate: &str) -> Result<(), Error> {
        *self.acceptor.lock().unwrap_or_else(PoisonError::into_inner) = certificates.server(certificate)?;
        Ok(())
    }

    /// What it has seen so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn serve(
    mut client: TcpStream,
    target: u16,
    acceptor: TlsAcceptor,
    postgres: bool,
    seen: Arc<Mutex<Seen>>,
) -> std::io::Result<()> {
    let note = |what: &dyn Fn(&mut Seen)| what(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
    if postgres {
        let mut request = [0; SSL_REQUEST.len()];
        client.read_exact(&mut request).await?;
        if request != SSL_REQUEST {
            note(&|seen| seen.plain.extend(request));
            return Ok(());
        }
        client.write_all(b"S").await?;
    }
    // The first byte of TLS is 22, a handshake.
    let mut first = [0];
    if client.peek(&mut first).await? == 0 {
        return Ok(());
    }
    if first[0] != 22 {
        let mut said = Vec::new();
        client.take(4096).read_to_end(&mut said).await?;
        note(&|seen| seen.plain.extend(&said));
        return Ok(());
    }
    note(&|seen| seen.offered += 1);
    let mut client = match acceptor.accept(client).await {
        Ok(client) => client,
        Err(e) => {
            note(&|seen| seen.refusals.push(e.to_string()));
            return Ok(());
        }
    };
    note(&|seen| seen.taken += 1);
    let mut server = TcpStream::connect(("127.0.0.1", target)).await?;
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}
