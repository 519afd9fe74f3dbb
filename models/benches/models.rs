//! The parts that training and sampling spend their time in, on the CPU, two threads.
//!
//! `make bench` runs this beside `tools/bench_torch.py`, which times the same in PyTorch under the same names, and prints the
//! ratios.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use models::autoencoder::{Affine, Autoencoder, AutoencoderConfig};
use models::layers::{AttentionConfig, JointAttention, Rotation, frequency_tensor};
use models::mmdit::{Block, MmditConfig, MmditVariant};
use models::parameters::ParameterSet;
use models::random::Stream;
use tch::{Device, Kind, Tensor};

const WIDTH: i64 = 1216;
const HEADS: i64 = 19;
/// Image tokens along one side, and text tokens.
const SIDE: i64 = 16;
const TEXT: i64 = 154;

fn normal(purpose: &str, shape: &[i64]) -> Tensor {
    Stream::new(0, purpose, &[]).normal_tensor(shape, Device::Cpu)
}

fn rotation() -> Rotation {
    Rotation::axial(SIDE, SIDE, 1.0, &frequency_tensor(WIDTH / HEADS / 2, 10000.0), Device::Cpu)
}

/// Times `forward`, and `forward` with the gradients of `leaves` for fixed random gradients of its results.
fn forward_and_backward(criterion: &mut Criterion, name: &str, leaves: &[Tensor], forward: impl Fn() -> Vec<Tensor>) {
    criterion.bench_function(&format!("{name}_forward"), |b| b.iter(|| tch::no_grad(|| black_box(forward()))));
    let outgoing: Vec<Tensor> = tch::no_grad(&forward).iter().map(|y| normal("gradient", &y.size())).collect();
    criterion.bench_function(&format!("{name}_forward_backward"), |b| {
        b.iter(|| {
            let weighted = forward().into_iter().zip(&outgoing).map(|(y, g)| (y * g).sum(Kind::Float));
            let loss = weighted.reduce(|a, b| a + b).unwrap_or_default();
            black_box(Tensor::run_backward(&[loss], leaves, false, false))
        });
    });
}

fn mmdit(criterion: &mut Criterion) {
    let config = MmditConfig {
        channels: 16,
        patch_size: 2,
        width: WIDTH,
        blocks: 2,
        heads: HEADS,
        hidden: 4 * WIDTH,
        text_streams: 2,
        text_width: 2304,
        pooled_width: 768,
        zero_gates: false,
        variant: MmditVariant::default(),
    };
    let inputs = [("image", SIDE * SIDE), ("text", TEXT)]
        .map(|(name, tokens)| normal(name, &[1, tokens, WIDTH]).set_requires_grad(true));
    let [image, text] = &inputs;
    let y = normal("y", &[1, WIDTH]).set_requires_grad(true);
    let rotation = rotation();

    let set = ParameterSet::initialise(0, Device::Cpu, |scope| drop(Block::new(scope, &config, 0)));
    let block = Block::new(&set.scope(), &config, 0);
    let mut leaves: Vec<Tensor> = set.views().iter().map(Tensor::shallow_clone).collect();
    leaves.extend([image.shallow_clone(), text.shallow_clone(), y.shallow_clone()]);
    forward_and_backward(criterion, "mmdit_block", &leaves, || {
        let (image, text) = block.forward(image, text, &y, Some(&rotation));
        [Some(image), text].into_iter().flatten().collect()
    });

    let shape = AttentionConfig {
        features: WIDTH,
        heads: HEADS,
        query_features: WIDTH,
        text_output: true,
        cosine: false,
        merge: false,
    };
    let set = ParameterSet::initialise(0, Device::Cpu, |scope| drop(JointAttention::new(scope, shape)));
    let attention = JointAttention::new(&set.scope(), shape);
    let mut leaves: Vec<Tensor> = set.views().iter().map(Tensor::shallow_clone).collect();
    leaves.extend([image.shallow_clone(), text.shallow_clone()]);
    forward_and_backward(criterion, "attention", &leaves, || {
        let (image, text) = attention.forward(image, text, Some(&rotation));
        [Some(image), text].into_iter().flatten().collect()
    });
}

fn autoencoder(criterion: &mut Criterion) {
    let config = AutoencoderConfig {
        in_channels: 3,
        out_channels: 3,
        latent_channels: 16,
        widths: vec![128, 256, 512, 512],
        layers_per_block: 2,
        groups: 32,
        mid_attention: true,
        quant_conv: false,
        post_quant_conv: false,
        scale: 0.3611,
        shift: 0.1159,
    };
    let affine = Affine::default();
    let set = ParameterSet::initialise(0, Device::Cpu, |scope| drop(Autoencoder::new(scope, &config, affine)));
    let model = Autoencoder::new(&set.scope(), &config, affine);
    let (pixels, latents) = (normal("pixels", &[1, 3, 128, 128]), normal("latents", &[1, 16, 16, 16]));
    criterion.bench_function("vae_encode", |b| b.iter(|| tch::no_grad(|| black_box(model.encode(&pixels)))));
    criterion.bench_function("vae_decode", |b| b.iter(|| tch::no_grad(|| black_box(model.decode(&latents)))));
}

fn two_threads() -> Criterion {
    tch::set_num_threads(2);
    Criterion::default().sample_size(10).warm_up_time(std::time::Duration::from_secs(1))
}

criterion_group! {
    name = benches;
    config = two_threads();
    targets = mmdit, autoencoder
}
criterion_main!(benches);
