//! Inception v3 as FID is computed with it: the network of TensorFlow's `inception-2015-12-05`, in the weights that pytorch-fid
//! publishes (`pt_inception-2015-12-05-6726825d.pth`).
//!
//! It is not torchvision's Inception v3, whose weights are refused: that has 1000 classes and not 1008, its average pools
//! count zeros around the picture, and its last block pools averages where this one takes the largest.
//!
//! Features depend on how pictures come to 299 × 299 pixels, and a FID may only be compared with one of the same kind.
//! [`Resize`] has those of pytorch-fid and of TensorFlow. clean-fid resizes with antialiasing (Pillow's bicubic filter, in
//! float32, cut off at 0 and 255) and scales as TensorFlow does: its features are those of pictures that were resized so
//! before, under [`Resize::Tensorflow1`], which leaves pictures of 299 × 299 pixels their size.
//!
//! Sources: `inception.py` of pytorch-fid 0.3, `feature_extractor_inceptionv3.py` of torch-fidelity 0.4,
//! `inception_torchscript.py` of clean-fid 0.1.35.

mod blocks;
mod resize;

pub use resize::Resize;

use std::collections::BTreeSet;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::parameters::{Initial, Scope};
use crate::weights::Weights;
use blocks::{Block, Builder, Convolution, Pool, Shape};

/// Side of the pictures that the network takes, in pixels.
pub const SIDE: i64 = 299;

/// Numbers that it makes of a picture: those after the last pool, which FID compares.
pub const FEATURES: i64 = 2048;

/// Classes of the last layer, 1000 of ImageNet's among them.
pub const CLASSES: i64 = 1008;

/// The network, up to the last pool, and its classifier.
#[derive(Debug)]
pub struct Inception {
    first: [Convolution; 3],
    second: [Convolution; 2],
    blocks: Vec<Block>,
    /// (classes, features), float32.
    classes: Tensor,
    resize: Resize,
    kind: Kind,
}

impl Inception {
    /// Reads the published file, or a file of the same tensors in any format that [`Weights`] knows. Computes in `kind`, which
    /// for numbers that others are to compare theirs with is float32. Weights with a NaN or an infinity are refused.
    pub fn open(path: &Path, device: Device, kind: Kind) -> Result<Self, ModelError> {
        let weights = without_extras(Weights::open(path)?);
        // Norms are folded in full; what comes of that is in `kind`.
        let loaded = Scope::read(weights, device, Kind::Float, |scope| Self::new(scope, kind))?;
        loaded.refuse_not_finite(path)?;
        Ok(loaded.model)
    }

    fn new(scope: &Scope, kind: Kind) -> Self {
        let convolution =
            |name: &str, inputs: i64, shape: Shape| Convolution::new(&scope.at(name), kind, inputs, shape);
        let block = |name: &str, inputs: i64, build: &dyn Fn(&Builder) -> Block| {
            build(&Builder { scope: &scope.at(name), kind, inputs })
        };
        let classifier = scope.at("fc");
        let initial = Initial::Linear { inputs: FEATURES };
        // Part of the file, and of no score: see `class_logits`.
        let _ = classifier.parameter("bias", &[CLASSES], initial);
        Self {
            first: [
                convolution("Conv2d_1a_3x3", 3, Shape::valid(32, 3, 2)),
                convolution("Conv2d_2a_3x3", 32, Shape::valid(32, 3, 1)),
                convolution("Conv2d_2b_3x3", 32, Shape::same(64, [3; 2])),
            ],
            second: [
                convolution("Conv2d_3b_1x1", 64, Shape::valid(80, 1, 1)),
                convolution("Conv2d_4a_3x3", 80, Shape::valid(192, 3, 1)),
            ],
            blocks: vec![
                block("Mixed_5b", 192, &|builder| builder.a(32)),
                block("Mixed_5c", 256, &|builder| builder.a(64)),
                block("Mixed_5d", 288, &|builder| builder.a(64)),
                block("Mixed_6a", 288, &|builder| builder.b()),
                block("Mixed_6b", 768, &|builder| builder.c(128)),
                block("Mixed_6c", 768, &|builder| builder.c(160)),
                block("Mixed_6d", 768, &|builder| builder.c(160)),
                block("Mixed_6e", 768, &|builder| builder.c(192)),
                block("Mixed_7a", 768, &|builder| builder.d()),
                block("Mixed_7b", 1280, &|builder| builder.e(Pool::Mean)),
                // Likely a mistake of the original (pytorch-fid); these weights are used with it.
                block("Mixed_7c", 2048, &|builder| builder.e(Pool::Largest)),
            ],
            classes: classifier.parameter("weight", &[CLASSES, FEATURES], initial),
            resize: Resize::default(),
            kind,
        }
    }

    /// Resizes and scales pictures as another program does.
    #[must_use]
    pub fn with_resize(self, resize: Resize) -> Self {
        Self { resize, ..self }
    }

    /// Of `pixels` (batch, 3, height, width) in 0..=1, RGB and of any floating type, the features (batch, 2048), float32 and on
    /// the network's device. Pictures of 299 × 299 pixels are only scaled. Metrics read 8-bit files: pictures that were never
    /// rounded to 255ths give other features than their files do.
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        check("pictures", pixels, None)?;
        let pixels = pixels.to_device(self.classes.device()).to_kind(Kind::Float);
        Ok(self.forward(&self.resize.prepare(&pixels)))
    }

    /// As [`Inception::features`], of pictures (batch, 3, 299, 299) that were resized and scaled to about −1..=1 before.
    pub fn features_of_prepared(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        check("prepared pictures", x, Some(SIDE))?;
        Ok(self.forward(&x.to_device(self.classes.device())))
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let chain = |x: Tensor, layers: &[Convolution]| layers.iter().fold(x, |x, layer| layer.forward(&x));
        let x = Pool::Halving.forward(&chain(x.to_kind(self.kind), &self.first));
        let x = Pool::Halving.forward(&chain(x, &self.second));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(&x));
        x.to_kind(Kind::Float).mean_dim([2i64, 3].as_slice(), false, Kind::Float)
    }

    /// What the classifier says of `features` (batch, 2048): (batch, 1008), the logarithms of probabilities but for a constant.
    /// Without the layer's bias, as the Inception Score has always been computed (torch-fidelity's `logits_unbiased`).
    pub fn class_logits(&self, features: &Tensor) -> Result<Tensor, ModelError> {
        match features.size()[..] {
            [_, FEATURES] => Ok(features.to_kind(Kind::Float).linear(&self.classes, None::<&Tensor>)),
            ref size => Err(ModelError::Configuration {
                what: "features",
                value: format!("of the shape {size:?}"),
                expected: format!("(batch, {FEATURES})"),
            }),
        }
    }
}

/// Refuses what is not (batch, 3, height, width) of a floating type; `side` says both sides.
fn check(what: &'static str, x: &Tensor, side: Option<i64>) -> Result<(), ModelError> {
    let fits = |found: i64| side.map_or(found > 0, |side| found == side);
    match x.size()[..] {
        [_, 3, height, width] if fits(height) && fits(width) && x.is_floating_point() => Ok(()),
        ref size => {
            let sides = side.map_or("height, width".to_owned(), |side| format!("{side}, {side}"));
            Err(ModelError::Configuration {
                what,
                value: format!("{:?} of the shape {size:?}", x.kind()),
                expected: format!("floating numbers of the shape (batch, 3, {sides})"),
            })
        }
    }
}

/// Leaves out what a file may hold and features do not need: the classifier beside the network that only training uses, and
/// the number of batches that a norm's statistics are of, which files from before torch 0.4.1 do not have.
fn without_extras(weights: Weights) -> Weights {
    let counter = |name: &str| {
        let norm = name.strip_suffix(".num_batches_tracked")?;
        weights.contains(&format!("{norm}.running_mean")).then(|| name.to_owned())
    };
    let counters: BTreeSet<String> = weights.tensors().filter_map(|tensor| counter(&tensor.name)).collect();
    weights.renamed(|name| (!name.starts_with("AuxLogits.") && !counters.contains(name)).then(|| name.to_owned()))
}
