//! Files that are torn, do not fit or lie: an error with file and field, and no panic.

use std::fs;
use std::path::Path;

use models::ModelError;
use models::autoencoder::{Affine, Autoencoder};
use models::clip::Clip;
use models::gemma2::Gemma2;
use models::llama::Llama;
use models::llava::Llava;
use models::mmdit::MmditConfig;
use models::modernbert::ModernBert;
use models::weights::{Weights, write};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::parity::fixtures;

const CPU: Device = Device::Cpu;
const FLOAT: Kind = Kind::Float;

/// A copy of a reference folder whose configuration `change` has changed.
pub(crate) fn changed(name: &str, change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures("hf").join(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let path = copy.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    copy
}

fn open(name: &str, folder: &Path) -> Result<Vec<String>, ModelError> {
    Ok(match name {
        "autoencoder_kl" => Autoencoder::open(folder, Affine::default(), CPU, FLOAT)?.not_finite,
        "clip" => Clip::open(folder, CPU, FLOAT)?.not_finite,
        "gemma2" => Gemma2::open(folder, CPU, FLOAT)?.not_finite,
        "llama" => Llama::open(folder, CPU, FLOAT)?.not_finite,
        "llava_next" => Llava::open(folder, CPU, FLOAT)?.not_finite,
        _ => ModernBert::open(folder, CPU, FLOAT)?.not_finite,
    })
}

#[test]
fn configurations_that_cannot_be_name_file_and_field() {
    let set = |field: &'static str, value: Value| move |config: &mut Value| config[field] = value.clone();
    let cases: Vec<(&str, tempfile::TempDir, &str)> = vec![
        ("llama", changed("llama", set("model_type", json!("mamba"))), "\"mamba\" is not llama"),
        ("llama", changed("llama", set("hidden_act", json!("snake"))), "hidden_act: \"snake\""),
        ("llama", changed("llama", set("num_key_value_heads", json!(3))), "num_key_value_heads: 3 does not divide"),
        ("llama", changed("llama", set("num_hidden_layers", json!(1_000_000))), "more than 1024"),
        ("llama", changed("llama", set("hidden_size", json!("wide"))), "hidden_size: \"wide\" is not a whole number"),
        ("llama", changed("llama", set("rope_parameters", json!({"rope_type": "yarn"}))), "rope_type: \"yarn\""),
        ("llama", changed("llama", set("vocab_size", json!(1000))), "misshapen   model.embed_tokens.weight"),
        ("gemma2", changed("gemma2", set("head_dim", json!(15))), "head_dim: 15 is odd"),
        (
            "gemma2",
            changed("gemma2", set("attn_logit_softcapping", json!(0))),
            "attn_logit_softcapping: 0 is not a number above",
        ),
        ("gemma2", changed("gemma2", set("layer_types", json!(["full_attention"]))), "1 kinds for 4 layers"),
        ("gemma2", changed("gemma2", set("num_hidden_layers", json!(5))), "layer_types: 4 kinds for 5 layers"),
        ("modernbert", changed("modernbert", set("num_attention_heads", json!(7))), "num_attention_heads"),
        ("clip", changed("clip", |c| c["text_config"]["hidden_act"] = json!("mish")), "text_config.hidden_act"),
        ("clip", changed("clip", set("model_type", json!("siglip"))), "\"siglip\" is not a CLIP model"),
        ("clip", changed("clip", |c| c["vision_config"]["num_hidden_layers"] = json!(4)), "missing     vision_model"),
        ("llava_next", changed("llava_next", set("image_grid_pinpoints", json!([[28, 55]]))), "image_grid_pinpoints"),
        ("llava_next", changed("llava_next", set("image_grid_pinpoints", json!([[28, 28000]]))), "at most 64 tiles"),
        ("llava_next", changed("llava_next", set("vision_feature_layer", json!(-9))), "vision_feature_layer"),
        (
            "autoencoder_kl",
            changed("autoencoder_kl", set("norm_num_groups", json!(5))),
            "multiples of norm_num_groups 5",
        ),
        ("autoencoder_kl", changed("autoencoder_kl", set("latent_channels", json!(8))), "misshapen"),
        ("autoencoder_kl", changed("autoencoder_kl", set("latents_mean", json!([-1.6, 2.0]))), "latents_mean: [-1.6"),
        ("autoencoder_kl", changed("autoencoder_kl", set("latents_std", json!([8.4, 5.9]))), "scaled by channel"),
    ];
    for (name, folder, expected) in cases {
        let error = open(name, folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        let file =
            if expected.contains("missing") || expected.contains("misshapen") { "safetensors" } else { "config.json" };
        assert!(error.contains(file), "{expected}: {error}");
    }
}

/// Replaces the tensor `name` of a folder's weights; `None` leaves it out.
fn replace(folder: &Path, file: &str, name: &str, tensor: Option<Tensor>) {
    let path = folder.join(file);
    let weights = Weights::open(&path).unwrap();
    let all = weights.tensors().filter(|t| t.name != name);
    let mut tensors: Vec<_> = all.map(|t| (t.name.clone(), weights.read(&t.name).unwrap().unwrap())).collect();
    tensors.extend(tensor.map(|tensor| (name.to_owned(), tensor)));
    drop(weights);
    fs::remove_file(&path).unwrap();
    write(&path, &tensors).unwrap();
}

#[test]
fn missing_and_unexpected_tensors_come_in_one_error_and_nan_is_named() {
    let folder = changed("llama", |_| ());
    replace(folder.path(), "model.safetensors", "model.norm.weight", None);
    replace(folder.path(), "model.safetensors", "extra", Some(Tensor::from_slice(&[1f32])));
    let error = open("llama", folder.path()).unwrap_err().to_string();
    assert!(error.contains("missing     model.norm.weight [64]") && error.contains("unexpected  extra [1]"), "{error}");

    let folder = changed("llama", |_| ());
    let broken = Tensor::from_slice(&[f32::NAN; 64]);
    replace(folder.path(), "model.safetensors", "model.norm.weight", Some(broken));
    assert_eq!(open("llama", folder.path()).unwrap(), ["model.norm.weight"]);
}

#[test]
fn token_ids_that_do_not_fit_are_errors() {
    let gemma = Gemma2::open(&fixtures("hf").join("gemma2"), CPU, FLOAT).unwrap().model;
    for (ids, expected) in [(vec![5i64, 300], "300"), (vec![-1], "-1"), (vec![], "[1, 0]")] {
        let ids = Tensor::from_slice(&ids).unsqueeze(0);
        let error = gemma.forward(&ids, &ids.ones_like()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let clip = Clip::open(&fixtures("hf").join("clip"), CPU, FLOAT).unwrap().model.text.unwrap();
    let long = Tensor::full([1, 78], 4, (Kind::Int64, CPU));
    assert!(clip.forward(&long, &long.ones_like()).unwrap_err().to_string().contains("at most 77"));
}

#[test]
fn a_reference_configuration_that_cannot_be_is_refused() {
    let folder = fixtures("mmdit").join("rope2d_swiglu");
    let weights = Weights::open(&folder.join("weights.safetensors")).unwrap();
    let original: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("model_params_1s.json");
    for (field, value, expected) in [
        ("positional_encoding", json!("ALiBi"), "RoPE2dV2"),
        ("attn_type", json!("linear"), "softmax_flash"),
        ("MLP_type", json!("relu"), "swiglu_old"),
        ("num_heads", json!(0), "heads"),
        ("dim", json!(31), "width"),
        ("num_blocks", json!("many"), "invalid type"),
    ] {
        let mut config = original.clone();
        config[field] = value;
        fs::write(&file, config.to_string()).unwrap();
        let error = MmditConfig::from_reference(&file, &weights).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("model_params_1s.json"), "{field}: {error}");
    }
}
