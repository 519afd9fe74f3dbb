//! A Hugging Face Hub on loopback, for tests of what reads from it and writes to it.
//!
//! It speaks what the Hub speaks to `huggingface_hub` with `HF_HUB_DISABLE_XET=1`: repositories with branches and commits,
//! listings in pages, files that lie in git or in the large file storage, uploads in one or many parts, and commits. Large
//! files come from and go to a second server on another host, by signed links, and that server refuses tokens, as S3 does.
//! A test orders [`Fault`]s, and looks at what was asked ([`Asked`]) and at what the repositories hold.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! use hub::{Access, Fault, Hub, RepoKind};
//! let hub = Hub::start()?;
//! hub.token("hf_write", Access::write("me"));
//! let oid = hub.create(RepoKind::Dataset, "me/data").gated().commit("main", [("a.txt", "hello")]);
//! hub.fault(Fault::status(503).on("/resolve/").times(2));
//! // … read `a.txt` at `oid` from hub.endpoint() …
//! assert!(hub.requests().iter().all(|asked| asked.side == hub::Side::Hub || !asked.has_authorization));
//! # drop(oid);
//! # Ok(())
//! # }
//! ```
//!
//! It needs a machine on which all of 127.0.0.0/8 is loopback, as on Linux: clients tell the storage from the Hub by its host.

mod access;
mod answer;
mod body;
mod cdn;
mod commit;
mod create;
mod faults;
mod git;
mod hub;
mod info;
mod lfs;
mod links;
mod preupload;
mod question;
mod records;
mod refs;
mod resolve;
mod route;
mod server;
mod settings;
mod store;
mod tree;

pub use access::Access;
pub use faults::Fault;
pub use hub::{Handle, Hub};
pub use records::{Asked, Side};
pub use settings::Settings;
pub use store::{Commit, File, RepoKind};
