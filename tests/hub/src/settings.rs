//! What the Hub decides by, where tests want smaller numbers.

use std::time::Duration;

/// How a hub behaves. The sizes are much below those of the real one, so that small files meet with everything.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Entries on a page of a listing. The Hub has 1000, and 50 with `expand`.
    pub page: usize,
    /// Files of at least so many bytes belong in the large file storage; as regular files they are refused. The Hub has 10 MiB.
    pub lfs_from: usize,
    /// Endings of names that belong in the large file storage whatever their size, where a repository has no
    /// `.gitattributes`.
    pub lfs_endings: Vec<String>,
    /// Large files of more bytes than this are uploaded in parts, by clients that can.
    pub multipart_over: usize,
    pub part_size: usize,
    /// How long a signed link can be used, in whole seconds.
    pub link_lifetime: Duration,
    /// Small files are behind a relative redirect to `/api/resolve-cache/…`, as they are on the Hub now.
    pub redirects_small: bool,
    /// Answers 401 about repositories that cannot be seen have `X-Error-Code: RepoNotFound`. Without it, `huggingface_hub`
    /// takes a 401 for that only where the endpoint is https.
    pub code_at_401: bool,
    /// A repository that is created over HTTP begins with a commit of a `.gitattributes`, as on the Hub.
    pub commits_gitattributes: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let endings =
            ["7z", "arrow", "bin", "gz", "jpg", "npy", "parquet", "png", "pt", "safetensors", "tar", "webp", "zip"];
        Self {
            page: 1000,
            lfs_from: 64 << 10,
            lfs_endings: endings.map(|ending| format!(".{ending}")).into(),
            multipart_over: 256 << 10,
            part_size: 128 << 10,
            link_lifetime: Duration::from_hours(1),
            redirects_small: true,
            code_at_401: true,
            commits_gitattributes: true,
        }
    }
}

impl Settings {
    /// Of a repository that is created over HTTP, as its first commit has it.
    pub(crate) fn gitattributes(&self) -> String {
        let lines = self.lfs_endings.iter().map(|ending| format!("*{ending} filter=lfs diff=lfs merge=lfs -text\n"));
        lines.collect()
    }
}
