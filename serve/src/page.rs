//! The web page: one file that needs nothing else, put together from its parts in `page/`.

use std::fmt::Write as _;

use axum::http::HeaderValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/style.css");
/// In their order; later ones use what earlier ones define.
const SCRIPTS: [&str; 5] = [
    include_str!("page/elements.js"),
    include_str!("page/form.js"),
    include_str!("page/gallery.js"),
    include_str!("page/order.js"),
    include_str!("page/start.js"),
];

#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) html: Bytes,
    /// Its Content-Security-Policy: its own style and script, by their digests, pictures and answers of this server,
    /// and the icon that it carries.
    pub(crate) policy: HeaderValue,
}

impl Page {
    pub(crate) fn new() -> Self {
        // Strict, and one scope, so that the parts see each other and nothing else does.
        let script = format!("'use strict';\n(() => {{\n{}}})();\n", SCRIPTS.concat());
        let html = HTML.replacen("/* style */", STYLE, 1).replacen("/* script */", &script, 1);
        let mut policy =
            String::from("default-src 'none'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; ");
        policy += "form-action 'none'; frame-ancestors 'none'";
        for (directive, source) in [("script-src", script.as_str()), ("style-src", STYLE)] {
            let _ = write!(policy, "; {directive} 'sha256-{}'", STANDARD.encode(Sha256::digest(source)));
        }
        // Base64 and the words above are all printable ASCII.
        let policy = HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
        Self { html: Bytes::from(html), policy }
    }
}
