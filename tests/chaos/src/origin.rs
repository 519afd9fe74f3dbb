//! The origin: its servers, from their start to their end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::runtime::Runtime;
use tokio::time::sleep;

use crate::Options;
use crate::behaviour::Site;
use crate::counts::{Counts, Served};
use crate::names::Names;
use crate::picture::Pictures;
use crate::rows::{self, Row, TRAP};
use crate::tls::Tls;
use crate::web::Web;
use crate::{http1, names};

/// Where all servers listen. Only this address is to be allowed, so that the usual 127.0.0.1 is as private as any other.
pub(crate) const HERE: Ipv4Addr = Ipv4Addr::new(127, 77, 7, 7);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// Ports that are tried until one is free at all addresses.
const PORTS: usize = 32;
/// Files of [`Origin::manifest_keys`].
const LIST: &str = "list.tsv";
const AUTHORITY: &str = "authority.pem";

/// A web that misbehaves. It has threads of its own, so that what blocks may use it, and stops when it is dropped.
pub struct Origin {
    /// Ended without waiting when the origin goes away; see [`Drop`].
    runtime: Option<Runtime>,
    web: Arc<Web>,
    connect_to: BTreeMap<String, SocketAddr>,
    nameserver: Option<SocketAddr>,
    certificate: Option<String>,
    /// Bound, so that nobody else has its port, and never listened on.
    _refused: TcpSocket,
}

impl Origin {
    /// Makes the list of `options`, and starts to serve it.
    ///
    /// # Errors
    /// Where addresses cannot be had: on machines where 127.77.7.7 and 127.66.6.6 are no loopback addresses.
    pub fn start(options: Options) -> io::Result<Self> {
        // As many as there may be; with fewer, connections wait.
        let _ = rlimit::increase_nofile_limit(u64::MAX);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(std::thread::available_parallelism().map_or(1, usize::from).min(4))
            .thread_name("chaos")
            .enable_all()
            .build()?;
        let started = {
            let _inside = runtime.enter();
            Self::serve(options)
        };
        match started {
            Ok(mut origin) => {
                origin.runtime = Some(runtime);
                Ok(origin)
            }
            Err(error) => {
                // Dropped, it would wait for its threads, which nobody may do within another runtime.
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// Starts all servers in the current runtime.
    fn serve(options: Options) -> io::Result<Self> {
        let (plain, trap) = pair(|port| listen(TRAP, port))?;
        let refused = TcpSocket::new_v4()?;
        refused.bind((HERE, 0).into())?;
        let mut addresses = Addresses { plain: plain.local_addr()?, tls: None, refused: refused.local_addr()? };

        let pictures = Pictures::new(options.seed)?;
        let port = addresses.plain.port();
        let rows = rows::rows(&options, &pictures, port);
        let hosts = rows::hosts(&rows, options.hosts);
        let counts = Counts::new(rows.len(), all_hosts(&rows, &options, &hosts));
        let web = Arc::new(Web { options, pictures, rows, counts, names: Names::default(), port });

        tokio::spawn(catch(trap, Arc::clone(&web)));
        let shared = Arc::clone(&web);
        tokio::spawn(accept(plain, move |socket| {
            let web = Arc::clone(&shared);
            async move { counted(&web, http1::serve(socket, &web)).await }
        }));
        let mut certificate = None;
        if web.options.tls {
            let tls = Arc::new(Tls::new(certified(&hosts))?);
            certificate = Some(tls.pem.clone());
            let listener = listen(HERE, 0)?;
            addresses.tls = Some(listener.local_addr()?);
            let shared = Arc::clone(&web);
            tokio::spawn(accept(listener, move |socket| {
                let (tls, web) = (Arc::clone(&tls), Arc::clone(&shared));
                async move { counted(&web, tls.serve(socket, &web)).await }
            }));
        }
        let mut nameserver = None;
        if web.options.dns {
            let (tcp, udp) = pair(|port| {
                let socket = std::net::UdpSocket::bind((HERE, port))?;
                socket.set_nonblocking(true)?;
                UdpSocket::from_std(socket)
            })?;
            nameserver = Some(tcp.local_addr()?);
            tokio::spawn(names::serve(udp, Arc::clone(&web)));
            let shared = Arc::clone(&web);
            tokio::spawn(accept(tcp, move |socket| {
                let web = Arc::clone(&shared);
                async move { names::serve_tcp(socket, &web).await }
            }));
        }
        let connect_to = hosts.iter().map(|host| (host.0.clone(), addresses.of(host))).collect();
        Ok(Self { runtime: None, web, connect_to, nameserver, certificate, _refused: refused })
    }

    /// The list.
    pub fn rows(&self) -> &[Row] {
        &self.web.rows
    }

    /// What it has served.
    pub fn served(&self) -> Served {
        self.web.counts.served()
    }

    /// Forgets what it has served, and to whom: what fails once will fail once more. For when no request is under way.
    pub fn reset(&self) {
        self.web.counts.reset();
        self.forget_names();
    }

    /// Forgets which names have been asked for, so that those that change their address lead here once more. For another
    /// downloader that goes on where one was killed: it has to ask again.
    pub fn forget_names(&self) {
        self.web.names.reset();
    }

    /// The list as tab-separated values with the columns url, caption and sha256, and a header. Nothing in it is quoted, as
    /// nothing in it needs to be: no value has a tab or the end of a line in it.
    pub fn list_tsv(&self) -> String {
        let mut list = String::from("url\tcaption\tsha256\n");
        for row in &self.web.rows {
            let _ = writeln!(list, "{}\t{}\t{}", row.url, row.caption, row.sha256.as_deref().unwrap_or_default());
        }
        list
    }

    /// The address to connect to for each host that a name server need not be asked for. It has a port: URLs have none.
    pub fn connect_to(&self) -> &BTreeMap<String, SocketAddr> {
        &self.connect_to
    }

    /// The name server, over UDP and TCP, where [`Options::dns`] asks for one.
    pub fn nameserver(&self) -> Option<SocketAddr> {
        self.nameserver
    }

    /// The certificate, in PEM, of the authority to be trusted, where [`Options::tls`] asks for one.
    pub fn certificate_pem(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    /// The networks that may be connected to. All other private ones are to be refused.
    pub fn allow_networks(&self) -> Vec<String> {
        vec![format!("{HERE}/32")]
    }

    /// Writes the list and the certificate into `folder`, which is made if need be, and gives the keys of a download stage
    /// that uses them, in TOML, one a line. Limits, times and tries are left to the caller.
    pub fn manifest_keys(&self, folder: &Path) -> io::Result<String> {
        std::fs::create_dir_all(folder)?;
        let list = folder.join(LIST);
        std::fs::write(&list, self.list_tsv())?;
        let mut keys = format!("urls = {}\n", quoted(&list.to_string_lossy()));
        let hosts: Vec<String> =
            self.connect_to.iter().map(|(host, address)| format!("{} = \"{address}\"", quoted(host))).collect();
        let _ = writeln!(keys, "connect_to = {{ {} }}", hosts.join(", "));
        let networks: Vec<String> = self.allow_networks().iter().map(|network| quoted(network)).collect();
        let _ = writeln!(keys, "allow_networks = [{}]", networks.join(", "));
        if let Some(address) = self.nameserver {
            let _ = writeln!(keys, "nameservers = [\"{address}\"]");
        }
        if let Some(pem) = &self.certificate {
            let path = folder.join(AUTHORITY);
            std::fs::write(&path, pem)?;
            let _ = writeln!(keys, "trusted_certificates = {}", quoted(&path.to_string_lossy()));
        }
        let _ = writeln!(keys, "robots_txt = {}", self.web.options.robots_txt);
        if self.web.options.verify_hash {
            keys.push_str("verify_hash = { column = \"sha256\", type = \"sha256\" }\n");
        }
        Ok(keys)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin")
            .field("options", &self.web.options)
            .field("port", &self.web.port)
            .finish_non_exhaustive()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Where hosts are.
struct Addresses {
    plain: SocketAddr,
    tls: Option<SocketAddr>,
    refused: SocketAddr,
}

impl Addresses {
    fn of(&self, (_, is_tls, is_refused): &(String, bool, bool)) -> SocketAddr {
        match self.tls {
            _ if *is_refused => self.refused,
            Some(tls) if *is_tls => tls,
            _ => self.plain,
        }
    }
}

/// All hosts of a list: those to be connected to, and those that the name server knows.
fn all_hosts(rows: &[Row], options: &Options, hosts: &BTreeSet<(String, bool, bool)>) -> impl Iterator<Item = String> {
    let named = rows.iter().enumerate().filter_map(|(index, row)| {
        let site = row.behaviour.site();
        (matches!(site, Site::Dns(_)) && row.duplicate_of.is_none()).then(|| rows::host(site, index, options.hosts))
    });
    hosts.iter().map(|(name, ..)| name.clone()).chain(named)
}

/// The hosts that a certificate is to name one by one.
fn certified(hosts: &BTreeSet<(String, bool, bool)>) -> BTreeSet<String> {
    let wrong = rows::host(Site::TlsWrongName, 0, 1);
    let named = hosts.iter().filter(|(name, is_tls, _)| *is_tls && *name != wrong && !name.ends_with(".goaway.test"));
    named.map(|(name, ..)| name.clone()).collect()
}

/// A listener at any free port, and something else at the same.
fn pair<T>(other: impl Fn(u16) -> io::Result<T>) -> io::Result<(TcpListener, T)> {
    let mut tries = 0;
    loop {
        let listener = listen(HERE, 0)?;
        match other(listener.local_addr()?.port()) {
            Ok(other) => return Ok((listener, other)),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse || tries == PORTS => return Err(error),
            Err(_in_use) => tries += 1,
        }
    }
}

/// Must be called within a runtime.
fn listen(address: Ipv4Addr, port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((address, port).into())?;
    socket.listen(BACKLOG)
}

/// Serves all connections, each in a task that ends with it.
async fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // Out of descriptors, as a rule.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = socket.set_nodelay(true);
        tokio::spawn(serve(socket));
    }
}

/// Counts a connection as long as it is served.
async fn counted(web: &Web, serving: impl Future<Output = ()>) {
    web.counts.connection();
    let _open = web.counts.connections.enter();
    serving.await;
}

/// Counts who connects where nobody should.
async fn catch(listener: TcpListener, web: Arc<Web>) {
    loop {
        match listener.accept().await {
            Ok(_) => drop(web.counts.trapped.fetch_add(1, Ordering::Relaxed)),
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
