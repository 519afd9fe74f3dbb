//! How many images a second a rank that loads can encode, with an autoencoder and text encoders of the published sizes, random weights.
//!
//! `cargo run --release -p ferrotype-trainer --example encode_speed -- --side 256 --batch 64`

#![expect(clippy::print_stdout, reason = "it is there to print")]

use std::path::Path;
use std::time::Instant;

use models::autoencoder::{Affine, Autoencoder, AutoencoderConfig};
use models::clip::{ClipText, ClipTextConfig};
use models::device;
use models::gemma2::{Gemma2, Gemma2Config};
use models::modernbert::{ModernBert, ModernBertConfig};
use models::parameters::{ParameterSet, Scope};
use models::settings::Settings;
use serde_json::{Value, json};
use tch::{Cuda, Device, Kind, Tensor};

const USAGE: &str =
    "usage: encode_speed [--side PIXELS] [--batch N] [--steps N] [--device cpu|cuda] [--dtype float32|bfloat16]";

/// Of a caption, in each of the three encoders.
const TOKENS: i64 = 77;

fn wait(device: Device) {
    if let Device::Cuda(ordinal) = device {
        Cuda::synchronize(ordinal as i64);
    }
}

fn settings(values: Value) -> Settings {
    Settings::from_values(values, Path::new("encode_speed"))
}

/// Parameters so small that nothing overflows on the way through all layers.
fn parameters(describe: impl Fn(&Scope), device: Device, kind: Kind) -> ParameterSet {
    let set = ParameterSet::allocate(device, describe);
    drop(tch::no_grad(|| set.flat().shallow_clone().uniform_(-0.02, 0.02)));
    set.computing_in(kind)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [mut side, mut batch, mut steps] = [256, 64, 10];
    let (mut device, mut kind) = (None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(USAGE)?;
        let number = || value.parse::<i64>().map_err(|error| format!("{name} {value}: {error}\n{USAGE}"));
        match name.as_str() {
            "--side" => side = number()?,
            "--batch" => batch = number()?,
            "--steps" => steps = number()?,
            "--device" => device = Some(value),
            "--dtype" => kind = Some(if value == "float32" { Kind::Float } else { Kind::BFloat16 }),
            _ => return Err(USAGE.into()),
        }
    }
    let device = device::named(device.as_deref(), 0)?;
    let kind = kind.unwrap_or(device::usual_kind(device));
    let _guard = tch::no_grad_guard();

    // FLUX.1's autoencoder, Gemma 2 2B, ModernBERT large, CLIP L/14's text half.
    let autoencoder = AutoencoderConfig::read(&settings(json!({
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 16,
        "use_quant_conv": false, "use_post_quant_conv": false, "scaling_factor": 0.3611, "shift_factor": 0.1159,
    })))?;
    let gemma = Gemma2Config::read(&settings(json!({})))?;
    let modernbert = ModernBertConfig::read(&settings(json!({
        "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 2624,
    })))?;
    let clip = ClipTextConfig::read(&settings(json!({
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    })))?;
    let affine = Affine::default();
    let of_autoencoder = parameters(|scope| drop(Autoencoder::new(scope, &autoencoder, affine)), device, kind);
    let autoencoder = Autoencoder::new(&of_autoencoder.scope(), &autoencoder, affine);
    let of_gemma = parameters(|scope| drop(Gemma2::new(scope, &gemma)), device, kind);
    let gemma = Gemma2::new(&of_gemma.scope(), &gemma);
    let of_modernbert = parameters(|scope| drop(ModernBert::new(scope, &modernbert)), device, kind);
    let modernbert = ModernBert::new(&of_modernbert.scope(), &modernbert);
    let of_clip = parameters(|scope| drop(ClipText::new(scope, &clip)), device, kind);
    let clip = ClipText::new(&of_clip.scope(), &clip);

    let pixels = Tensor::rand([batch, 3, side, side], (Kind::Float, device)) * 2.0 - 1.0;
    let ids = Tensor::randint(1000, [batch, TOKENS], (Kind::Int64, device));
    let mask = ids.ones_like();
    let latents = || autoencoder.encode(&pixels.to_kind(kind)).map(|posterior| posterior.mean);
    let texts = || -> Result<Tensor, models::ModelError> {
        drop(gemma.forward(&ids, &mask)?);
        drop(modernbert.forward(&ids, &mask)?);
        Ok(clip.forward(&ids, &mask)?.pooled)
    };
    let latent_ms = milliseconds(&latents, steps, device)?;
    let text_ms = milliseconds(&texts, steps, device)?;
    let both = 1000.0 * batch as f64 / (latent_ms + text_ms);
    println!(
        "{}",
        json!({
            "side": side, "batch": batch, "kind": format!("{kind:?}"), "latents_ms": latent_ms, "texts_ms": text_ms,
            "images_per_second": both, "used_gib": trainer::used_memory(device).map(|bytes| bytes as f64 / f64::from(1 << 30)),
            "finite": latents()?.isfinite().all().int64_value(&[]) == 1,
        })
    );
    Ok(())
}

/// Of one call, once warm.
fn milliseconds(
    work: &dyn Fn() -> Result<Tensor, models::ModelError>,
    times: i64,
    device: Device,
) -> Result<f64, models::ModelError> {
    drop(work()?);
    drop(work()?);
    wait(device);
    let since = Instant::now();
    for _ in 0..times {
        drop(work()?);
    }
    wait(device);
    Ok(1000.0 * since.elapsed().as_secs_f64() / times as f64)
}
