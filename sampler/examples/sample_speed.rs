//! How long a step of sampling takes, with guidance, for a model of a given size with random weights.
//!
//! `cargo run --release -p ferrotype-sampler --example sample_speed -- --side 512 --batch 8`

#![expect(clippy::print_stdout, reason = "it is there to print")]

use std::time::Instant;

use models::device;
use models::mmdit::{Mmdit, MmditConfig, MmditVariant};
use models::text::TextCondition;
use sampler::guidance::{Guidance, Guided};
use sampler::solver::{Solver, follow, times};
use tch::{Cuda, Device, Kind, Tensor};

const USAGE: &str = "usage: sample_speed [--side PIXELS] [--batch N] [--blocks N] [--width N] [--heads N] [--steps N] [--device cpu|cuda]
                    [--dtype float32|bfloat16]
The default is the reference's model of 1.25 billion parameters at 512 pixels.";

/// Of the published text encoders and autoencoder.
const TEXT: (i64, i64, i64) = (77, 2304, 768);
const FACTOR: i64 = 8;
const CHANNELS: i64 = 16;

fn wait(device: Device) {
    if let Device::Cuda(ordinal) = device {
        Cuda::synchronize(ordinal as i64);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [mut side, mut batch, mut blocks, mut width, mut heads, mut steps] = [512, 8, 19, 1216, 19, 50];
    let (mut device, mut kind) = (None, Kind::BFloat16);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(USAGE)?;
        let number = || value.parse::<i64>().map_err(|error| format!("{name} {value}: {error}\n{USAGE}"));
        match name.as_str() {
            "--side" => side = number()?,
            "--batch" => batch = number()?,
            "--blocks" => blocks = number()?,
            "--width" => width = number()?,
            "--heads" => heads = number()?,
            "--steps" => steps = number()?,
            "--device" => device = Some(value),
            "--dtype" => kind = if value == "float32" { Kind::Float } else { Kind::BFloat16 },
            _ => return Err(USAGE.into()),
        }
    }
    let device = device::named(device.as_deref(), 0)?;
    let (tokens, text_width, pooled_width) = TEXT;
    let config = MmditConfig {
        channels: CHANNELS,
        patch_size: 2,
        width,
        blocks,
        heads,
        hidden: 4 * width,
        text_streams: 2,
        text_width,
        pooled_width,
        zero_gates: false,
        variant: MmditVariant::default(),
    };
    config.validate()?;
    let parameters = Mmdit::allocate(&config, device);
    // Small enough that nothing overflows on the way through all blocks.
    drop(tch::no_grad(|| parameters.flat().shallow_clone().uniform_(-0.02, 0.02)));
    let computing = parameters.computing_in(kind);
    let model = Mmdit::over(&config, &computing);
    let normal = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, device));
    let condition = TextCondition {
        tokens: vec![normal(&[batch, tokens, text_width]), normal(&[batch, tokens, text_width])],
        pooled: normal(&[batch, pooled_width]),
    };
    let guided = Guided::new(&model, &condition, None, Guidance::of(4.0));
    let noise = normal(&[batch, CHANNELS, side / FACTOR, side / FACTOR]);
    let sample = |steps: i64| {
        let velocity = |x: &Tensor, t: f64| guided.velocity(x, t).map_err(Box::<dyn std::error::Error>::from);
        let fresh = |_| noise.zeros_like();
        follow(Solver::Euler, &times(steps as u32, 1.0), &noise, velocity, fresh, |_, _| Ok(()))
    };
    drop(sample(2)?);
    wait(device);
    let since = Instant::now();
    let latents = sample(steps)?;
    wait(device);
    let seconds = since.elapsed().as_secs_f64();
    let is_finite = latents.isfinite().all().int64_value(&[]) == 1;
    println!(
        "{}",
        serde_json::json!({
            "program": "ferrotype", "parameters": Mmdit::elements(&config), "side": side, "batch": batch, "steps": steps,
            "step_ms": 1000.0 * seconds / steps as f64, "images_per_second": batch as f64 / seconds, "finite": is_finite,
        })
    );
    Ok(())
}
