//! The list: deterministic, unique, and mixed as promised.

use std::collections::{BTreeMap, BTreeSet};

use demo::palette::COLORS;
use demo::{Background, Catalogue, Fault, Format, HOST, Scene, Subject};

fn scenes(catalogue: &Catalogue) -> impl Iterator<Item = &Scene> {
    catalogue.entries().iter().filter_map(|entry| match entry.subject() {
        Subject::Scene(scene) => Some(scene),
        Subject::Photograph { .. } => None,
    })
}

/// FNV-1a, 64 bits.
fn checksum(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

#[test]
fn the_list_is_the_same_for_ever() {
    let list = Catalogue::default().url_list();
    assert_eq!(list, Catalogue::default().url_list());
    assert_ne!(list, Catalogue::new(2400, 1).url_list());
    // Whoever changes this number changes every digest of every demo run.
    assert_eq!(checksum(&list), 0xFDF8_395B_6239_0833, "{:#X}", checksum(&list));
}

#[test]
fn a_longer_list_begins_like_a_shorter_one() {
    let (short, long) = (Catalogue::new(200, 5).url_list(), Catalogue::new(600, 5).url_list());
    assert!(long.starts_with(&short));
}

#[test]
fn every_line_is_a_unique_url_of_the_origin_and_a_caption() {
    let catalogue = Catalogue::default();
    let list = catalogue.url_list();
    let mut lines = list.lines();
    assert_eq!(lines.next(), Some("url\tcaption"));
    let mut urls = BTreeSet::new();
    for (line, entry) in lines.zip(catalogue.entries()) {
        let (url, caption) = line.split_once('\t').unwrap();
        assert_eq!((url, caption), (entry.url().as_str(), entry.caption().as_str()));
        let host = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
        if entry.fault() == Some(Fault::UnresolvableHost) {
            assert!(host.starts_with("gone-") && host.ends_with(".demo.invalid"), "{url}");
        } else {
            assert_eq!(host, HOST);
        }
        assert!(!caption.is_empty() && !caption.contains('\t'), "{line}");
        assert!(urls.insert(url.to_owned()), "twice: {url}");
    }
    assert_eq!(urls.len(), 2400);
}

#[test]
fn captions_name_the_background() {
    for entry in Catalogue::default().entries() {
        let Subject::Scene(scene) = entry.subject() else { continue };
        let caption = entry.caption();
        match scene.background {
            Background::Plain { color, .. } => {
                let article = if color.name == "orange" { "an" } else { "a" };
                assert!(caption.ends_with(&format!(" on {article} {} background", color.name)), "{caption}");
            }
            Background::Gradient { from, to, .. } => {
                assert!(
                    caption.ends_with(&format!(" on a background fading from {} to {}", from.name, to.name)),
                    "{caption}"
                );
                assert_ne!(from, to);
            }
        }
        let (article, noun) = caption.split_once(' ').unwrap();
        let vowel = noun.starts_with(['a', 'e', 'i', 'o']);
        assert!(article != "a" || !vowel || noun.starts_with("ewe") || noun.starts_with("one"), "{caption}");
    }
}

#[test]
fn faults_are_planted_as_promised() {
    let catalogue = Catalogue::default();
    for (fault, count) in catalogue.planted() {
        assert_eq!(count, if fault == Fault::UnresolvableHost { 12 } else { 24 }, "{fault}");
    }
    let photographs: Vec<_> =
        catalogue.entries().iter().filter(|entry| matches!(entry.subject(), Subject::Photograph { .. })).collect();
    assert_eq!(photographs.len(), 12);
    assert!(photographs.iter().all(|entry| entry.fault().is_none()));
    // Spread over the list: the first half has half of them.
    let early = catalogue.entries()[..1200].iter().filter(|entry| entry.fault().is_some()).count();
    assert_eq!(early, 9 * 12 + 6);
}

#[test]
fn fault_names_are_stable() {
    let names: Vec<_> = Fault::ALL.iter().map(|fault| (fault.name(), fault.is_lost())).collect();
    assert_eq!(
        names,
        [
            ("not_found", true),
            ("server_error_once", false),
            ("too_many_requests_once", false),
            ("redirect", false),
            ("stalled", true),
            ("truncated", true),
            ("html_page", true),
            ("corrupt_jpeg", true),
            ("no_ai", true),
            ("unresolvable_host", true),
        ]
    );
}

#[test]
fn scenes_are_mixed_as_promised() {
    let catalogue = Catalogue::default();
    let (mut formats, mut colors, mut gradients) = (BTreeMap::new(), BTreeMap::new(), 0);
    for scene in scenes(&catalogue) {
        *formats.entry(scene.format).or_insert(0) += 1;
        match scene.background {
            Background::Plain { color, rgb } => {
                *colors.entry(color.name).or_insert(0) += 1;
                assert!(color.rgb.iter().zip(rgb).all(|(&named, used)| named.abs_diff(used) <= 4), "{color:?} {rgb:?}");
            }
            Background::Gradient { .. } => gradients += 1,
        }
    }
    assert!((1340..1540).contains(&formats[&Format::Jpeg]), "{formats:?}");
    assert!((520..680).contains(&formats[&Format::Png]), "{formats:?}");
    assert!((290..430).contains(&formats[&Format::WebP]), "{formats:?}");
    assert!((290..430).contains(&gradients), "{gradients}");
    assert_eq!(colors.len(), COLORS.len());
    assert!(colors.values().all(|count| (120..220).contains(count)), "{colors:?}");
}

#[test]
fn sprites_keep_their_margin() {
    let catalogue = Catalogue::default();
    for scene in scenes(&catalogue) {
        let (longer, shorter) = (scene.width.max(scene.height), scene.width.min(scene.height));
        assert!((64..=512).contains(&longer), "{scene:?}");
        assert!(longer * 9 <= shorter * 16 + 16, "{scene:?}");
        let place = scene.placement;
        let margin =
            [place.left, place.top, scene.width - place.left - place.side, scene.height - place.top - place.side];
        assert!(margin.iter().all(|&margin| f64::from(margin) >= 0.14 * f64::from(shorter)), "{scene:?}");
        assert!((0.5..=0.72).contains(&(f64::from(place.side) / f64::from(shorter))), "{scene:?}");
    }
}

#[test]
fn a_few_sprites_are_common_and_all_others_rare() {
    let mut uses = BTreeMap::new();
    for entry in Catalogue::default().entries() {
        if let (Subject::Scene(_), caption) = (entry.subject(), entry.caption()) {
            *uses.entry(caption.split(" on a").next().unwrap().to_owned()).or_insert(0) += 1;
        }
    }
    let mut uses: Vec<usize> = uses.into_values().collect();
    uses.sort_unstable();
    assert_eq!(uses.len(), 320, "there is none that is never shown");
    let (rare, common) = uses.split_at(320 - 24);
    assert!(rare.iter().all(|uses| (1..=3).contains(uses)), "{rare:?}");
    assert!(common.iter().all(|uses| (65..=80).contains(uses)), "{common:?}");
}

#[test]
fn color_prompts_cycle_through_colors_and_sprites() {
    let prompts = Catalogue::default().color_prompts(48);
    assert_eq!(prompts.len(), 48);
    let sprites: BTreeSet<_> = prompts.iter().map(|prompt| prompt.prompt.split(" on a").next().unwrap()).collect();
    assert_eq!(sprites.len(), 24, "the common ones, each on two colours");
    for (prompt, color) in prompts.iter().zip(COLORS.iter().cycle()) {
        assert_eq!(prompt.color, color.name);
        assert!(prompt.prompt.ends_with(&format!(" {} background", color.name)), "{prompt:?}");
    }
    assert!(Catalogue::default().color_prompts(0).is_empty());
    assert_eq!(Catalogue::new(0, 1).color_prompts(1000).len(), 1000);
}

#[test]
fn an_empty_catalogue_is_a_header() {
    assert_eq!(Catalogue::new(0, 7).url_list(), "url\tcaption\n");
}
