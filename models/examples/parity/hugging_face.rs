//! Models in the Hugging Face layout.

use std::error::Error;
use std::path::Path;

use models::autoencoder::{Affine, Autoencoder};
use models::clip::Clip;
use models::gemma2::Gemma2;
use models::llama::{Generation, Llama, Sampling};
use models::llava::{ImageMode, Llava};
use models::modernbert::ModernBert;
use models::parameters::Loaded;
use models::settings::Settings;
use tch::{Device, Kind, Tensor};

use crate::check::{Compared, Reference, TOLERANCE};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const CPU: Device = Device::Cpu;
const FLOAT: Kind = Kind::Float;

/// The model, after a word about tensors that make its output meaningless.
fn sound<M>(loaded: Loaded<M>) -> M {
    for name in &loaded.not_finite {
        eprintln!("warning: {name} holds NaN or infinity");
    }
    loaded.model
}

fn close(output: &str, ours: &Tensor, io: &Reference) -> Result<Compared> {
    Ok(Compared::tensors(output, ours, &io.float(output)?, TOLERANCE))
}

pub(crate) fn autoencoder(folder: &Path, io: &Reference) -> Result<Vec<Compared>> {
    let model = sound(Autoencoder::open(folder, Affine::default(), CPU, FLOAT)?);
    let posterior = model.encode(&io.float("pixels")?)?;
    let decoded = model.decode(&io.float("latents")?)?;
    Ok(vec![
        close("mean", &posterior.mean, io)?,
        close("logvar", &posterior.logvar, io)?,
        close("decoded", &decoded, io)?,
    ])
}

pub(crate) fn gemma2(folder: &Path, io: &Reference) -> Result<Vec<Compared>> {
    let model = sound(Gemma2::open(folder, CPU, FLOAT)?);
    let hidden = model.forward(io.get("input_ids")?, io.get("attention_mask")?)?;
    Ok(vec![close("last_hidden_state", &hidden, io)?])
}

pub(crate) fn modernbert(folder: &Path, io: &Reference) -> Result<Vec<Compared>> {
    let model = sound(ModernBert::open(folder, CPU, FLOAT)?);
    let hidden = model.forward(io.get("input_ids")?, io.get("attention_mask")?)?;
    Ok(vec![close("last_hidden_state", &hidden, io)?])
}

pub(crate) fn clip(folder: &Path, io: &Reference) -> Result<Vec<Compared>> {
    let model = sound(Clip::open(folder, CPU, FLOAT)?);
    let mut compared = Vec::new();
    if let Some(text) = &model.text
        && io.has("input_ids")
    {
        let out = text.forward(io.get("input_ids")?, io.get("attention_mask")?)?;
        compared.push(close("text_hidden", &out.hidden, io)?);
        compared.push(close("text_pooled", &out.pooled, io)?);
        if let Some(projection) = &model.text_projection {
            compared.push(close("text_embeds", &projection.forward(&out.pooled), io)?);
        }
    }
    if let Some(vision) = &model.vision
        && io.has("pixel_values")
    {
        let out = vision.forward(&io.float("pixel_values")?)?;
        let penultimate = out.states.iter().rev().nth(1).ok_or("the vision half has no layers")?;
        compared.push(close("vision_penultimate", penultimate, io)?);
        compared.push(close("vision_pooled", &out.pooled, io)?);
        if let Some(projection) = &model.visual_projection {
            compared.push(close("image_embeds", &projection.forward(&out.pooled), io)?);
        }
    }
    Ok(compared)
}

/// What the reference's `generate` gives for one row: the prompt is not part of it, and padding follows a token that stops.
fn padded(mut answer: Vec<i64>, length: usize, padding: i64) -> Vec<i64> {
    answer.resize(length.max(answer.len()), padding);
    answer
}

fn greedy(stop: &[i64], max_new_tokens: usize) -> Generation {
    Generation { max_new_tokens, stop: stop.to_vec(), sampling: Sampling::Greedy, batch: 2 }
}

pub(crate) fn llama(folder: &Path, settings: &Settings, io: &Reference) -> Result<Vec<Compared>> {
    let model = sound(Llama::open(folder, CPU, FLOAT)?);
    // The reference pads in front; here nothing is padded in front.
    let prompts: Vec<Vec<i64>> = io
        .ids("input_ids")?
        .into_iter()
        .zip(io.ids("attention_mask")?)
        .map(|(ids, mask)| ids.into_iter().zip(mask).filter(|(_, m)| *m == 1).map(|(id, _)| id).collect())
        .collect();
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let behind: Vec<Tensor> =
        prompts.iter().map(|prompt| Tensor::from_slice(&padded(prompt.clone(), longest, 0))).collect();
    let logits = tch::no_grad(|| Ok::<_, Box<dyn Error>>(model.logits(&model.embed(&Tensor::stack(&behind, 0))?)))?;
    let reference = io.float("logits")?;
    let present = io.get("attention_mask")?.to_kind(Kind::Bool);
    let mut compared = Vec::new();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (row, prompt) in (0i64..).zip(&prompts) {
        ours.push(logits.select(0, row).narrow(0, 0, prompt.len() as i64));
        let places = present.select(0, row).nonzero().squeeze_dim(1);
        theirs.push(reference.select(0, row).index_select(0, &places));
    }
    compared.push(Compared::tensors("logits", &Tensor::cat(&ours, 0), &Tensor::cat(&theirs, 0), TOLERANCE));
    if io.has("generated") {
        let generated = io.ids("generated")?;
        let prompt_length = io.get("input_ids")?.size().get(1).copied().unwrap_or(0) as usize;
        let length = generated.first().map_or(0, |row| row.len().saturating_sub(prompt_length));
        let padding = settings.integer("pad_token_id", 0)?;
        let asked = std::fs::read(folder.join("reference.json")).ok();
        let asked: serde_json::Value =
            asked.map_or(Ok(serde_json::Value::Null), |bytes| serde_json::from_slice(&bytes))?;
        let max_new_tokens = asked["max_new_tokens"].as_u64().map_or(length, |n| n as usize);
        let answers = model.generate(&prompts, &greedy(&model.config().stop, max_new_tokens))?;
        let ours: Vec<i64> = answers.into_iter().flat_map(|answer| padded(answer, length, padding)).collect();
        let theirs: Vec<i64> = generated.iter().flat_map(|row| row.iter().skip(prompt_length).copied()).collect();
        compared.push(Compared::ids("generated", &ours, &theirs));
    }
    Ok(compared)
}

pub(crate) fn llava(folder: &Path, settings: &Settings, io: &Reference) -> Result<Vec<Compared>> {
    let model = sound(Llava::open(folder, CPU, FLOAT)?);
    let padding = settings.table("text_config").integer("pad_token_id", 0)?;
    let mut compared = Vec::new();
    for k in 0.. {
        let of = |name: &str| format!("{k}.{name}");
        if !io.has(&of("rgb")) {
            break;
        }
        let rgb = io.get(&of("rgb"))?;
        let (height, width, _) = rgb.size3()?;
        let bytes = Vec::<u8>::try_from(rgb.flatten(0, -1))?;
        let picture = image::RgbImage::from_raw(width as u32, height as u32, bytes).ok_or("rgb is no picture")?;
        let reference = io.float(&of("pixel_values"))?.select(0, 0);
        let mode = if reference.size().first() == Some(&1) { ImageMode::Pad } else { ImageMode::Anyres };
        let prepared = model.processor().prepare(&picture, mode)?;
        compared.push(pixels(&of("pixel_values"), &model, &prepared.pixels, &reference));

        // From the reference's pixels on, so that a rounding of the preparation does not count twice.
        let tokens = model.picture_tokens(&prepared.with_pixels(reference))?;
        let ids = io.ids(&of("input_ids"))?.concat();
        let prompt = model.embed(&ids, &[tokens])?;
        let logits = tch::no_grad(|| model.language().logits(&prompt.unsqueeze(0)));
        compared.push(close(&of("logits"), &logits, io)?);
        let theirs: Vec<i64> = io.ids(&of("generated"))?.concat();
        // Some versions of the reference return the prompt with the answer.
        let theirs: Vec<i64> =
            if theirs.starts_with(&ids) { theirs.into_iter().skip(ids.len()).collect() } else { theirs };
        let options = greedy(&model.config().language.stop, theirs.len());
        let ours = model.language().generate_from(&[prompt], &options)?.concat();
        compared.push(Compared::ids(of("generated"), &padded(ours, theirs.len(), padding), &theirs));
    }
    Ok(compared)
}

/// Processed pixels agree within one step of 255 before normalisation.
fn pixels(output: &str, model: &Llava, ours: &Tensor, reference: &Tensor) -> Compared {
    let deviation = Tensor::from_slice(&model.processor().deviation()).view([1, 3, 1, 1]);
    Compared::tensors(output, &(ours * &deviation), &(reference * &deviation), 1.001 / 255.0)
}
