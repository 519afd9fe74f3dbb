//! Classifier-free guidance.

use models::ModelError;
use models::mmdit::Mmdit;
use models::text::TextCondition;
use tch::{Kind, Tensor};

/// A model bound to its prompts.
#[derive(Debug)]
pub struct Guided<'a> {
    model: &'a Mmdit,
    condition: TextCondition,
    guidance: f64,
}

impl<'a> Guided<'a> {
    /// `guidance` is the usual scale g: `v = v_null + g·(v_prompt − v_null)`. (The published system's `cfg_scale` is g − 1.)
    /// At 1 only the prompts' branch is run.
    pub fn new(model: &'a Mmdit, condition: &TextCondition, guidance: f64) -> Self {
        let both = is_guided(guidance).then(|| condition.followed_by(&condition.null()));
        Self { model, condition: both.unwrap_or_else(|| condition.narrow(0, condition.pooled.size()[0])), guidance }
    }

    /// The velocity at `x` (batch, channels, height, width) and time `t`.
    pub fn velocity(&self, x: &Tensor, t: f64) -> Result<Tensor, ModelError> {
        let batch = x.size()[0];
        let time = |n: i64| Tensor::full([n], t, (Kind::Float, x.device()));
        if !is_guided(self.guidance) {
            return Ok(self.model.forward(x, &time(batch), &self.condition)?.velocity);
        }
        let velocity = self.model.forward(&Tensor::cat(&[x, x], 0), &time(2 * batch), &self.condition)?.velocity;
        let (prompt, null) = (velocity.narrow(0, 0, batch), velocity.narrow(0, batch, batch));
        Ok(&null + (prompt - &null) * self.guidance)
    }
}

fn is_guided(guidance: f64) -> bool {
    (guidance - 1.0).abs() > 1e-9
}
