//! What makes the pictures, as the server sees it.

use std::ops::ControlFlow;

use serde::Serialize;

use crate::description::Description;

/// One picture to make. All of it has been checked against the generator's [`Description`] and the server's
/// [`Limits`](crate::Limits).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PictureRequest {
    /// Not blank, and without control characters other than tab and line ends.
    pub prompt: String,
    /// May be empty.
    pub negative_prompt: String,
    /// In pixels; a multiple of the description's `side_multiple`, like the height.
    pub width: u32,
    pub height: u32,
    /// At least 1.
    pub steps: u32,
    /// Finite and not negative; 1 is none.
    pub guidance: f64,
    /// One of the description's samplers.
    pub sampler: String,
    /// Finite and positive; 1 is none.
    pub shift: f64,
    /// Below 2⁵³, so that JavaScript can hold it.
    pub seed: u64,
}

/// Returns the end of a text that a generator does not see, because the text is longer than it takes; None where it sees all of it. It is
/// called from any thread.
pub type Truncation = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Makes pictures. It is called from one thread only, for one batch after another.
pub trait Generator: Send + 'static {
    /// What it can make. The server reads it once, before the first picture.
    fn describe(&self) -> &Description;

    /// What it does not see of prompts, which clients are told. The server asks for this once, before the first picture.
    fn truncation(&self) -> Truncation;

    /// Makes one picture for each request, in their order, each encoded as PNG.
    ///
    /// `pictures` is not empty; its requests have size, steps, guidance, sampler and shift in common, and together they have at
    /// most the description's `most_pixels`. A picture depends on its own request only, not on those it is made with.
    ///
    /// `progress` is to be told the number of steps done, and of how many, after each of them. When it answers with
    /// [`ControlFlow::Break`], nobody waits for the pictures any more, and [`GenerateError::Stopped`] is to be returned at once.
    ///
    /// Other errors of several pictures are not theirs in common: the server asks again for each alone. A panic counts as
    /// [`GenerateError::Failed`]; the generator is called again after it.
    fn generate(
        &mut self,
        pictures: &[PictureRequest],
        progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<u8>>, GenerateError>;
}

/// Why there is no picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// `progress` asked for it.
    #[error("stopped before it was done")]
    Stopped,
    /// The request cannot be met, by whoever asks it; the words go to the client.
    #[error("{0}")]
    Refused(String),
    /// The generator is at fault; the words go to the client.
    #[error("{0}")]
    Failed(String),
}
