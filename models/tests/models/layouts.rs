//! The same models as other versions of the libraries write them: the outputs stay the reference's.

use std::fs;
use std::path::Path;

use models::llava::{Llava, LlavaConfig};
use models::settings::Settings;
use models::weights::{Weights, write};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::bad_files::changed;
use crate::check;

fn assert_parity(what: &str, folder: &Path) {
    for one in check::folder(folder).unwrap_or_else(|error| panic!("{what}: {error}")) {
        assert!(one.is_ok(), "{what}: {one}");
    }
}

fn remove(config: &mut Value, fields: &[&str]) {
    for field in fields {
        config.as_object_mut().unwrap().remove(*field);
    }
}

#[test]
fn configurations_of_transformers_4_mean_the_same() {
    assert_parity(
        "llama",
        changed("llama", |config| {
            remove(config, &["rope_parameters", "head_dim"]);
            config["rope_theta"] = json!(500_000.0);
            config["rope_scaling"] = Value::Null;
        })
        .path(),
    );
    assert_parity(
        "gemma2",
        changed("gemma2", |config| {
            remove(config, &["rope_parameters", "layer_types"]);
            config["rope_theta"] = json!(10_000.0);
        })
        .path(),
    );
    assert_parity(
        "modernbert",
        changed("modernbert", |config| {
            remove(config, &["rope_parameters", "layer_types"]);
            config["global_rope_theta"] = json!(160_000.0);
            config["local_rope_theta"] = json!(10_000.0);
        })
        .path(),
    );
    assert_parity(
        "clip",
        changed("clip", |config| {
            let text = config["text_config"].take();
            config["text_config_dict"] = text;
        })
        .path(),
    );
    assert_parity(
        "llava_next",
        changed("llava_next", |config| {
            remove(&mut config["text_config"], &["rope_parameters"]);
            config["text_config"]["rope_theta"] = json!(500_000.0);
        })
        .path(),
    );
}

#[test]
fn the_original_layout_of_llava_takes_no_word_for_the_pictures_place() {
    let original = |config: &mut Value| {
        let text = config["text_config"].take();
        config.as_object_mut().unwrap().extend(text.as_object().unwrap().clone());
        config["model_type"] = json!("llava_llama");
        remove(config, &["text_config", "image_token_index"]);
    };
    let folder = changed("llava_next", original);
    let model = Llava::open(folder.path(), Device::Cpu, Kind::Float).unwrap().model;
    let place = model.config().image_token;
    assert_eq!(place, -200);
    let picture = Tensor::zeros([3, model.config().language.width], (Kind::Float, Device::Cpu));
    assert_eq!(model.embed(&[1, place, 7], &[picture]).unwrap().size()[0], 5);

    let said = |index: &'static str| {
        let folder = changed("llava_next", |config| {
            original(config);
            config[index] = json!(329);
        });
        LlavaConfig::read(&Settings::in_folder(folder.path()).unwrap()).unwrap().image_token
    };
    assert_eq!([said("image_token_index"), said("image_token_id")], [329, 329]);
    let usual = changed("llava_next", |config| remove(config, &["image_token_index"]));
    assert_eq!(LlavaConfig::read(&Settings::in_folder(usual.path()).unwrap()).unwrap().image_token, 32_000);
}

#[test]
fn an_output_layer_in_the_files_counts_whatever_is_said_of_tying() {
    assert_parity("llama", changed("llama", |config| config["tie_word_embeddings"] = json!(true)).path());
    let tied = |config: &mut Value| config["text_config"]["tie_word_embeddings"] = json!(true);
    assert_parity("llava_next", changed("llava_next", tied).path());
}

/// Writes the folder's weights under other names.
fn rename(folder: &Path, rename: impl Fn(&str) -> String) {
    let path = folder.join("model.safetensors");
    let weights = Weights::open(&path).unwrap();
    let tensors: Vec<_> =
        weights.tensors().map(|t| (rename(&t.name), weights.read(&t.name).unwrap().unwrap())).collect();
    drop(weights);
    fs::remove_file(&path).unwrap();
    write(&path, &tensors).unwrap();
}

#[test]
fn llava_is_read_in_all_four_layouts() {
    // The fixture has the layout of transformers up to 4.51, with the tower's inner name left out.
    let swap = |name: &str, rules: &[(&str, &str)]| {
        let rule = rules.iter().find(|(from, _)| name.starts_with(from));
        rule.map_or_else(|| name.to_owned(), |(from, to)| name.replacen(from, to, 1))
    };
    let layouts: [(&str, &[(&str, &str)]); 3] = [
        (
            "original",
            &[
                ("language_model.lm_head", "lm_head"),
                ("language_model.model", "model"),
                ("multi_modal_projector.linear_1", "model.mm_projector.0"),
                ("multi_modal_projector.linear_2", "model.mm_projector.2"),
                ("image_newline", "model.image_newline"),
                ("vision_tower", "model.vision_tower.vision_tower.vision_model"),
            ],
        ),
        ("up to 4.51", &[("vision_tower", "vision_tower.vision_model")]),
        (
            "from 4.52",
            &[
                ("language_model.lm_head", "lm_head"),
                ("language_model.model", "model.language_model"),
                ("multi_modal_projector", "model.multi_modal_projector"),
                ("image_newline", "model.image_newline"),
                ("vision_tower", "model.vision_tower.vision_model"),
            ],
        ),
    ];
    for (layout, rules) in layouts {
        let folder = changed("llava_next", |_| ());
        rename(folder.path(), |name| swap(name, rules));
        assert_parity(layout, folder.path());
    }
    // Two names that mean the same tensor are one too many.
    let folder = changed("llava_next", |_| ());
    rename(folder.path(), |name| {
        if name.ends_with("post_layernorm.bias") { "model.image_newline".into() } else { name.into() }
    });
    let Err(error) = check::folder(folder.path()) else { panic!("it was taken") };
    assert!(error.to_string().contains("twice       newline"), "{error}");
}
