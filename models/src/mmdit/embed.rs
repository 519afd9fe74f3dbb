//! What turns latents, times and captions into tokens, and tokens back into a latent.

use tch::{Device, Kind, Tensor};

use super::MmditConfig;
use crate::layers::{Linear, RmsNorm};
use crate::parameters::{Initial, Scope};
use crate::text::TextCondition;

/// Latent to image tokens: a convolution over patches, without bias, then a linear layer (item 5 of the equations).
#[derive(Debug)]
pub(super) struct PatchEmbedding {
    projection: Tensor,
    linear: Linear,
    patch: i64,
}

impl PatchEmbedding {
    pub(super) fn new(scope: &Scope, config: &MmditConfig) -> Self {
        let MmditConfig { channels, patch_size: patch, width, .. } = *config;
        let inputs = channels * patch * patch;
        let shape = [width, channels, patch, patch];
        let projection = scope.at("pos_enc.proj").parameter("weight", &shape, Initial::Linear { inputs });
        Self { projection, linear: Linear::new(&scope.at("patch_emb"), width, width), patch }
    }

    /// (B, C, H, W) to (B, h·w, D), row-major. `positions` (h·w, D) are added before the linear layer.
    pub(super) fn forward(&self, latent: &Tensor, positions: Option<&Tensor>) -> Tensor {
        let size = latent.size();
        let (batch, channels, patch) = (size[0], size[1], self.patch);
        let (rows, columns) = (size[2] / patch, size[3] / patch);
        // The convolution's windows do not overlap, so it is one matrix product.
        let patches = latent
            .to_kind(self.linear.kind())
            .view([batch, channels, rows, patch, columns, patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, rows * columns, channels * patch * patch]);
        let kernel = self.projection.view([self.projection.size()[0], -1]);
        let tokens = patches.linear(&kernel, None::<&Tensor>);
        self.linear.forward(
            &positions.map_or_else(|| tokens.shallow_clone(), |positions| &tokens + positions.to_kind(tokens.kind())),
        )
    }
}

/// Side of the grid that absolute positions are taken from.
pub(super) const GRID: i64 = 256;

/// Absolute positions of `rows`×`columns` tokens, (rows·columns, width): the middle of a grid of [`GRID`]² positions half a
/// unit apart, the column's waves first, then the row's, whatever the resolution.
pub(super) fn absolute_positions(rows: i64, columns: i64, width: i64, device: Device) -> Tensor {
    let options = (Kind::Double, device);
    let quarter = width / 4;
    let frequencies = (Tensor::arange(quarter, options) * (-(10000f64.ln()) / quarter as f64)).exp();
    let waves = |count: i64| {
        let start = (GRID - count).div_euclid(2);
        let angles = (Tensor::arange(count, options) + start as f64).unsqueeze(1) * 0.5 * &frequencies;
        Tensor::cat(&[angles.sin(), angles.cos()], -1)
    };
    let half = 2 * quarter;
    let row = waves(rows).unsqueeze(1).expand([rows, columns, half], false);
    let column = waves(columns).unsqueeze(0).expand([rows, columns, half], false);
    Tensor::cat(&[column, row], -1).reshape([rows * columns, 2 * half]).to_kind(Kind::Float)
}

/// (B, h·w, C·p·p) to (B, C, H, W); features lie as (channel, row, column) of the patch.
pub(super) fn unpatchify(tokens: &Tensor, rows: i64, columns: i64, patch: i64) -> Tensor {
    let size = tokens.size();
    let channels = size[2] / (patch * patch);
    tokens.view([size[0], rows, columns, channels, patch, patch]).permute([0, 3, 1, 4, 2, 5]).reshape([
        size[0],
        channels,
        rows * patch,
        columns * patch,
    ])
}

/// Time and pooled text to one vector a sample (item 3 of the equations).
#[derive(Debug)]
pub(super) struct TimeEmbedding {
    scale: Tensor,
    time: Linear,
    pooled: Linear,
    width: i64,
}

impl TimeEmbedding {
    pub(super) fn new(scope: &Scope, config: &MmditConfig) -> Self {
        let width = config.width;
        Self {
            scale: scope.parameter_in_full("time_scale", &[1], Initial::Constant(1000.0)),
            time: Linear::without_bias(&scope.at("t_emb2"), width, width),
            pooled: Linear::without_bias(&scope.at("cond_MLP"), config.pooled_width, width),
            width,
        }
    }

    /// `time` (B), `pooled` (B, pooled width) to (B, D).
    pub(super) fn forward(&self, time: &Tensor, pooled: &Tensor) -> Tensor {
        // The exponent is 2j/D for every j in 0..D, twice the usual; sines take the even j, cosines the odd.
        let index = Tensor::arange(self.width, (Kind::Double, time.device()));
        let frequencies = (index * (-2.0 * 10000f64.ln() / self.width as f64)).exp().to_kind(Kind::Float);
        let angles = (time * &self.scale).unsqueeze(1) * frequencies;
        let pairs = angles.view([-1, self.width / 2, 2]);
        let waves = Tensor::cat(&[pairs.select(2, 0).sin(), pairs.select(2, 1).cos()], 1);
        let kind = self.time.kind();
        self.time.forward(&waves.to_kind(kind)) + self.pooled.forward(&pooled.to_kind(kind))
    }
}

/// One stream of text features to tokens: `c_proj(s·RMS(text))`.
#[derive(Debug)]
struct TextStream {
    scale: Tensor,
    norm: RmsNorm,
    projection: Linear,
}

/// All text streams, one after the other (item 4 of the equations).
#[derive(Debug)]
pub(super) struct TextEmbedding(Vec<TextStream>);

impl TextEmbedding {
    pub(super) fn new(scope: &Scope, config: &MmditConfig) -> Self {
        let stream = |suffix: &str| TextStream {
            scale: scope.parameter_in_full(&format!("learnable_scalar{suffix}"), &[1], Initial::Constant(1.0)),
            norm: RmsNorm::new(&scope.at(format!("pre_c_norm{suffix}")), config.text_width),
            projection: Linear::without_bias(&scope.at(format!("c_proj{suffix}")), config.text_width, config.width),
        };
        Self(["", "2"].into_iter().take(config.text_streams as usize).map(stream).collect())
    }

    /// To (B, L, D) over all streams. A dropped caption is zeros and stays zeros: there is no bias on the way.
    pub(super) fn forward(&self, condition: &TextCondition) -> Tensor {
        let tokens: Vec<Tensor> = self
            .0
            .iter()
            .zip(&condition.tokens)
            .map(|(stream, tokens)| {
                let tokens = stream.norm.forward_in_full(tokens) * &stream.scale;
                stream.projection.forward(&tokens.to_kind(stream.projection.kind()))
            })
            .collect();
        Tensor::cat(&tokens, 1)
    }
}
