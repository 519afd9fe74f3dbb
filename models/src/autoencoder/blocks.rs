//! The parts of encoder and decoder.

use tch::Tensor;

use super::AutoencoderConfig;
use crate::layers::{Convolution, GroupNorm, Linear, attend};
use crate::parameters::Scope;

const EPSILON: f64 = 1e-6;

/// The name in the current layout of one from before diffusers 0.15, whose attention had other names.
pub(super) fn current_name(name: &str) -> String {
    const OLD: [(&str, &str); 4] =
        [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];
    OLD.iter().fold(name.to_owned(), |name, (old, new)| name.replace(old, new))
}

/// Two convolutions around which the input is added.
#[derive(Debug)]
struct Residual {
    norms: [GroupNorm; 2],
    convolutions: [Convolution; 2],
    shortcut: Option<Convolution>,
}

impl Residual {
    fn new(scope: &Scope, inputs: i64, outputs: i64, groups: i64) -> Self {
        let norm = |name: &str, channels| GroupNorm::new(&scope.at(name), groups, channels, EPSILON);
        Self {
            norms: [norm("norm1", inputs), norm("norm2", outputs)],
            convolutions: [
                Convolution::same(&scope.at("conv1"), inputs, outputs, 3),
                Convolution::same(&scope.at("conv2"), outputs, outputs, 3),
            ],
            shortcut: (inputs != outputs).then(|| Convolution::same(&scope.at("conv_shortcut"), inputs, outputs, 1)),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let [first, second] = &self.norms;
        let [conv1, conv2] = &self.convolutions;
        let hidden = conv1.forward(&first.forward(x).silu());
        let hidden = conv2.forward(&second.forward(&hidden).silu());
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(x) + hidden,
            None => x + hidden,
        }
    }
}

/// Attention of every position to every other, one head.
#[derive(Debug)]
struct Attention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
}

impl Attention {
    fn new(scope: &Scope, channels: i64, groups: i64) -> Self {
        let linear = |name: &str| Linear::new(&scope.at(name), channels, channels);
        Self {
            norm: GroupNorm::new(&scope.at("group_norm"), groups, channels, EPSILON),
            query: linear("to_q"),
            key: linear("to_k"),
            value: linear("to_v"),
            out: linear("to_out.0"),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        // (batch, 1, positions, channels)
        let positions = self.norm.forward(x).flatten(2, 3).transpose(1, 2).unsqueeze(1);
        let of = |layer: &Linear| layer.forward(&positions);
        let attended = attend(&of(&self.query), &of(&self.key), &of(&self.value), None, false, None);
        x + self.out.forward(&attended).squeeze_dim(1).transpose(1, 2).reshape(size.as_slice())
    }
}

/// What lies between going down and coming up.
#[derive(Debug)]
struct Middle {
    residuals: [Residual; 2],
    attention: Option<Attention>,
}

impl Middle {
    fn new(scope: &Scope, channels: i64, config: &AutoencoderConfig) -> Self {
        let residual = |i: i64| Residual::new(&scope.at("resnets").at(i), channels, channels, config.groups);
        let attention = || Attention::new(&scope.at("attentions.0"), channels, config.groups);
        Self { residuals: [residual(0), residual(1)], attention: config.mid_attention.then(attention) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let [before, after] = &self.residuals;
        let x = before.forward(x);
        after.forward(&self.attention.as_ref().map_or_else(|| x.shallow_clone(), |attention| attention.forward(&x)))
    }
}

/// Some residual layers at one resolution, and what leads to the next one.
#[derive(Debug)]
struct Stage {
    residuals: Vec<Residual>,
    resample: Option<Convolution>,
}

/// Picture to moments: (batch, channels, H, W) to (batch, 2·latent channels, H / factor, W / factor).
#[derive(Debug)]
pub(super) struct Encoder {
    first: Convolution,
    stages: Vec<Stage>,
    middle: Middle,
    norm: GroupNorm,
    last: Convolution,
}

impl Encoder {
    pub(super) fn new(scope: &Scope, config: &AutoencoderConfig) -> Self {
        let widest = config.widths.last().copied().unwrap_or(1);
        let narrowest = config.widths.first().copied().unwrap_or(1);
        let mut inputs = narrowest;
        let count = config.widths.len();
        let stage = |(i, &outputs): (usize, &i64)| {
            let scope = scope.at("down_blocks").at(i);
            let residuals = (0..config.layers_per_block).map(|j| {
                let residual = Residual::new(&scope.at("resnets").at(j), inputs, outputs, config.groups);
                inputs = outputs;
                residual
            });
            let residuals = residuals.collect();
            let down = || Convolution::strided(&scope.at("downsamplers.0.conv"), outputs, outputs, 3, 2);
            Stage { residuals, resample: (i + 1 < count).then(down) }
        };
        let stages = config.widths.iter().enumerate().map(stage).collect();
        Self {
            first: Convolution::same(&scope.at("conv_in"), config.in_channels, narrowest, 3),
            stages,
            middle: Middle::new(&scope.at("mid_block"), widest, config),
            norm: GroupNorm::new(&scope.at("conv_norm_out"), config.groups, widest, EPSILON),
            last: Convolution::same(&scope.at("conv_out"), widest, 2 * config.latent_channels, 3),
        }
    }

    pub(super) fn forward(&self, pixels: &Tensor) -> Tensor {
        let mut x = self.first.forward(pixels);
        for stage in &self.stages {
            x = stage.residuals.iter().fold(x, |x, residual| residual.forward(&x));
            if let Some(down) = &stage.resample {
                // One pixel of zeros to the right and below, none to the left and above.
                x = down.forward(&x.constant_pad_nd([0, 1, 0, 1]));
            }
        }
        self.last.forward(&self.norm.forward(&self.middle.forward(&x)).silu())
    }
}

/// Latent to picture.
#[derive(Debug)]
pub(super) struct Decoder {
    first: Convolution,
    middle: Middle,
    stages: Vec<Stage>,
    norm: GroupNorm,
    last: Convolution,
}

impl Decoder {
    pub(super) fn new(scope: &Scope, config: &AutoencoderConfig) -> Self {
        let widest = config.widths.last().copied().unwrap_or(1);
        let narrowest = config.widths.first().copied().unwrap_or(1);
        let mut inputs = widest;
        let count = config.widths.len();
        let stage = |(i, &outputs): (usize, &i64)| {
            let scope = scope.at("up_blocks").at(i);
            let residuals = (0..=config.layers_per_block).map(|j| {
                let residual = Residual::new(&scope.at("resnets").at(j), inputs, outputs, config.groups);
                inputs = outputs;
                residual
            });
            let residuals = residuals.collect();
            let up = || Convolution::same(&scope.at("upsamplers.0.conv"), outputs, outputs, 3);
            Stage { residuals, resample: (i + 1 < count).then(up) }
        };
        let stages = config.widths.iter().rev().enumerate().map(stage).collect();
        Self {
            first: Convolution::same(&scope.at("conv_in"), config.latent_channels, widest, 3),
            middle: Middle::new(&scope.at("mid_block"), widest, config),
            stages,
            norm: GroupNorm::new(&scope.at("conv_norm_out"), config.groups, narrowest, EPSILON),
            last: Convolution::same(&scope.at("conv_out"), narrowest, config.out_channels, 3),
        }
    }

    pub(super) fn forward(&self, latents: &Tensor) -> Tensor {
        let mut x = self.middle.forward(&self.first.forward(latents));
        for stage in &self.stages {
            x = stage.residuals.iter().fold(x, |x, residual| residual.forward(&x));
            if let Some(up) = &stage.resample {
                let size = x.size();
                let doubled = [2, 3].map(|axis| 2 * size.get(axis).copied().unwrap_or(0));
                x = up.forward(&x.upsample_nearest2d(doubled, None, None));
            }
        }
        self.last.forward(&self.norm.forward(&x).silu())
    }
}
