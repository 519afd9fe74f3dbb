//! Who answers where only captions that are there already are to be taken.

use async_trait::async_trait;

use crate::captioner::{Captioner, Completion, Failure, Request};

/// Why a row is refused that has no caption, where nobody is asked for one.
pub(crate) const NO_CAPTION: &str = "no_caption";

/// Refuses every request: a row for which there is no caption gets none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

#[async_trait]
impl Captioner for Nobody {
    fn identity(&self) -> &'static str {
        "nobody"
    }

    fn capacity(&self) -> usize {
        64
    }

    async fn complete(&self, _request: Request) -> Result<Completion, Failure> {
        let detail = "there is no ready caption for it, and no model is named".to_owned();
        Err(Failure::Refused { reason: NO_CAPTION, detail })
    }
}
