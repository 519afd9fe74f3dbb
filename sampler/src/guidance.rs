//! Classifier-free guidance.

use models::ModelError;
use models::mmdit::Mmdit;
use models::text::TextCondition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// How strongly prompts are followed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Guidance {
    /// The usual scale g: `v = v_null + g·(v_prompt − v_null)`. (The published system's `cfg_scale` is g − 1.) At 1 only the prompts'
    /// branch is run.
    pub scale: f64,
    /// Times, from 1 (noise) to 0 (picture), between which it guides; elsewhere only the prompts' branch is run (Kynkäänniemi et al. 2024).
    #[serde(default = "always")]
    pub interval: [f64; 2],
    /// How far the guided velocity is brought back to the deviation of the prompts' own, from 0 (not) to 1 (Lin et al. 2023, section
    /// 3.4).
    #[serde(default)]
    pub rescale: f64,
}

fn always() -> [f64; 2] {
    [0.0, 1.0]
}

impl Guidance {
    /// Of a scale alone.
    pub fn of(scale: f64) -> Self {
        Self { scale, interval: always(), rescale: 0.0 }
    }

    fn guides(self, t: f64) -> bool {
        let [low, high] = self.interval;
        (self.scale - 1.0).abs() > 1e-9 && low <= t && t <= high
    }

    /// Whether it guides at any time.
    pub fn is_needed(self) -> bool {
        (self.scale - 1.0).abs() > 1e-9
    }
}

/// A model bound to its prompts.
#[derive(Debug)]
pub struct Guided<'a> {
    model: &'a Mmdit,
    prompts: &'a TextCondition,
    /// The prompts, and what they are guided away from, one batch after the other; `None` where nothing guides.
    both: Option<TextCondition>,
    guidance: Guidance,
}

impl<'a> Guided<'a> {
    /// Guides away from `negative`, of the same shape as `prompts`, or from no prompt at all.
    pub fn new(
        model: &'a Mmdit,
        prompts: &'a TextCondition,
        negative: Option<&TextCondition>,
        guidance: Guidance,
    ) -> Self {
        let both = guidance.is_needed().then(|| match negative {
            Some(negative) => prompts.followed_by(negative),
            None => prompts.followed_by(&prompts.null()),
        });
        Self { model, prompts, both, guidance }
    }

    /// The velocity at `x` (batch, channels, height, width) and time `t`.
    pub fn velocity(&self, x: &Tensor, t: f64) -> Result<Tensor, ModelError> {
        let batch = x.size()[0];
        let time = |n: i64| Tensor::full([n], t, (Kind::Float, x.device()));
        let Some(both) = self.both.as_ref().filter(|_| self.guidance.guides(t)) else {
            return Ok(self.model.forward(x, &time(batch), self.prompts)?.velocity);
        };
        let velocity = self.model.forward(&Tensor::cat(&[x, x], 0), &time(2 * batch), both)?.velocity;
        let (prompt, null) = (velocity.narrow(0, 0, batch), velocity.narrow(0, batch, batch));
        let guided = &null + (&prompt - &null) * self.guidance.scale;
        let rescale = self.guidance.rescale;
        if rescale == 0.0 {
            return Ok(guided);
        }
        let deviation = |v: &Tensor| v.std_dim([1i64, 2, 3].as_slice(), true, true);
        let factor = deviation(&prompt) / deviation(&guided).clamp_min(1e-12);
        Ok(guided * (factor * rescale + (1.0 - rescale)))
    }
}
