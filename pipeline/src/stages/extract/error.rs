//! What keeps an extraction from being planned, made or finished.

use crate::stage::StageError;

#[derive(Debug, thiserror::Error)]
pub(super) enum ExtractError {
    #[error(
        "the tar {name} is gone, and this shard is not made with the present parameters. Bring it back, or set the parameters \
         back that its shard was made with. To go on without it for good, delete {memory}: then shards are divided anew among \
         the tars that are there"
    )]
    Gone { name: String, memory: String },
    #[error(
        "another run that began at about the same time found other tars and gave other ones to {0}; run again, and the shards \
         that are not made yet are planned anew"
    )]
    DividedOtherwise(String),
    #[error(
        "{0} holds no tars: it is made of shards already. Tars come from a download with output = \"webdataset\", from an export, or \
         from files that were fetched"
    )]
    NoTars(String),
    #[error(
        "{file} is not what was committed: its digest is another. The tars it was made of are kept; `ferrotype verify` looks at \
         all files"
    )]
    NotVerified { file: String },
}

impl From<ExtractError> for StageError {
    fn from(error: ExtractError) -> Self {
        Self::failed(error)
    }
}
