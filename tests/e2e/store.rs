//! A real S3-compatible server (s3s-fs, over a folder) on loopback.

use std::path::Path;
use std::process::Command;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::runtime::Runtime;

const KEY: &str = "test-key";
const SECRET: &str = "test-secret";

/// A running server with one bucket, `bucket`. It stops with the test.
pub(crate) struct Store {
    _runtime: Runtime,
    address: std::net::SocketAddr,
}

impl Store {
    /// Serves `root`, a folder.
    pub(crate) fn start(root: &Path) -> Self {
        std::fs::create_dir_all(root.join("bucket")).expect("a bucket is a folder");
        let files = s3s_fs::FileSystem::new(root).expect("a folder to serve");
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = service.build();
        let runtime = Runtime::new().expect("threads for the store");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("its address");
        runtime.spawn(async move {
            let server = Builder::new(TokioExecutor::new());
            while let Ok((socket, _)) = listener.accept().await {
                let connection = server.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
                tokio::spawn(async move { drop(connection.await) });
            }
        });
        Self { _runtime: runtime, address }
    }

    /// Tells a command how to reach it, as users do.
    pub(crate) fn reach(&self, command: &mut Command) {
        command
            .env("AWS_ENDPOINT", format!("http://{}", self.address))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET);
    }
}
