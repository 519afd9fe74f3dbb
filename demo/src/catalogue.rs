//! The list of pictures: what is at each URL, what its caption says, and what goes wrong with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::assets::{Photograph, photographs, sprites};
use crate::caption;
use crate::fault::Fault;
use crate::palette::COLORS;
use crate::random::{Purpose, Random};
use crate::scene::{Format, Scene};

/// The host name in the URLs of the list. It never resolves (RFC 2606 reserves `.invalid`): a client must be told where to connect.
pub const HOST: &str = "origin.demo.invalid";

/// URLs in the list of `ferrotype demo`.
pub const DEFAULT_PICTURES: usize = 2400;
/// Seed of the list of `ferrotype demo`.
pub const DEFAULT_SEED: u64 = 1853;
/// Of so many URLs, one is a photograph.
const PHOTOGRAPH_EVERY: usize = 200;
/// Of so many URLs, one has each kind of fault. The list is dealt in blocks of this length, so faults are spread evenly over it.
const FAULT_EVERY: usize = 100;

/// What three of four scenes show. As on the web, a few things are seen often and most hardly ever; what these look like can be learnt from a
/// few thousand pictures.
const COMMON: [&str; 24] = [
    "balloon",
    "banana",
    "butterfly",
    "cactus",
    "carrot",
    "cherry blossom",
    "fire",
    "fox",
    "frog",
    "hamburger",
    "mushroom",
    "penguin",
    "pizza",
    "red apple",
    "red heart",
    "rocket",
    "sailboat",
    "snowman",
    "soccer ball",
    "star",
    "strawberry",
    "sunflower",
    "tropical fish",
    "watermelon",
];
/// The share of scenes that show one of [`COMMON`].
const COMMON_SHARE: f64 = 0.75;

/// A list of pictures with their captions and faults, drawn from a seed.
#[derive(Debug, Clone)]
pub struct Catalogue {
    entries: Vec<Entry>,
    seed: u64,
}

/// One line of the list.
#[derive(Debug, Clone)]
pub struct Entry {
    index: usize,
    subject: Subject,
    fault: Option<Fault>,
}

/// What a picture shows.
#[derive(Debug, Clone)]
pub enum Subject {
    /// A scene, rendered when it is asked for.
    Scene(Scene),
    /// A stored photograph.
    Photograph {
        /// The last part of its URL: "astronaut.jpg".
        file: &'static str,
        /// What it shows.
        caption: &'static str,
        /// Counts the photographs of the list. It makes the URL unique, since a long list repeats its photographs.
        number: usize,
    },
}

/// A prompt whose sampled picture can be judged by the colour of its border.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColorPrompt {
    /// Worded like the captions: "a red apple on a teal background".
    pub prompt: String,
    /// The background's name in [`crate::palette::COLORS`].
    pub color: &'static str,
}

/// What a path of the origin leads to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found<'a> {
    /// A scene at the URL of the list, with its fault.
    Listed(&'a Entry, &'a Scene),
    /// A scene at the URL to which the one of the list redirects.
    Moved(&'a Scene),
    Photograph(&'static Photograph),
}

impl Default for Catalogue {
    /// The catalogue of `ferrotype demo`: 2,400 pictures.
    fn default() -> Self {
        Self::new(DEFAULT_PICTURES, DEFAULT_SEED)
    }
}

impl Catalogue {
    /// Draws a list of `pictures` URLs from `seed`.
    ///
    /// A scene depends on the seed and on its position alone, so a longer list begins with the same scenes as a shorter one.
    /// Each hundred URLs hold one fault of each kind (every second hundred an unresolvable host), and each two hundred hold one
    /// photograph, which is never faulty; what is left over at the end of the list has neither.
    #[must_use]
    pub fn new(pictures: usize, seed: u64) -> Self {
        let mut entries = draw_scenes(pictures, seed);
        place_photographs(&mut entries, seed);
        plant_faults(&mut entries, seed);
        Self { entries, seed }
    }

    /// The lines of the list, in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The list as a tab-separated table: the header `url<TAB>caption`, then a line for each picture, all ended by LF.
    #[must_use]
    pub fn url_list(&self) -> String {
        let mut list = "url\tcaption\n".to_owned();
        for entry in &self.entries {
            // Writing to a string cannot fail.
            let _ = writeln!(list, "{}\t{}", entry.url(), entry.caption());
        }
        list
    }

    /// How many URLs have each kind of fault. Every kind is there, if only with 0.
    #[must_use]
    pub fn planted(&self) -> BTreeMap<Fault, u64> {
        let mut planted: BTreeMap<Fault, u64> = Fault::ALL.into_iter().map(|fault| (fault, 0)).collect();
        for fault in self.entries.iter().filter_map(|entry| entry.fault) {
            *planted.entry(fault).or_default() += 1;
        }
        planted
    }

    /// Prompts that cycle through the twelve colours, each with another of the common sprites until every one of them has been used.
    #[must_use]
    pub fn color_prompts(&self, count: usize) -> Vec<ColorPrompt> {
        let (common, _) = common_and_rare();
        let mut deck = Deck::new(self.seed, Purpose::PromptSprites, common);
        COLORS
            .iter()
            .cycle()
            .take(count)
            .map(|color| ColorPrompt {
                prompt: caption::plain(&sprites()[deck.draw()].name, color.name),
                color: color.name,
            })
            .collect()
    }

    /// What is at a path ("/pictures/00017.jpg"), which may come from anywhere; nothing, if the catalogue has no such picture.
    pub(crate) fn find(&self, path: &str) -> Option<Found<'_>> {
        let (folder, file) = path.strip_prefix('/')?.split_once('/')?;
        if folder == "photographs" {
            return photographs().iter().find(|photograph| photograph.file == file).map(Found::Photograph);
        }
        let entry = self.entries.get(file.split_once('.')?.0.parse::<usize>().ok()?)?;
        let Subject::Scene(scene) = &entry.subject else { return None };
        if path == entry.path() {
            Some(Found::Listed(entry, scene))
        } else if entry.moved_path().as_deref() == Some(path) {
            Some(Found::Moved(scene))
        } else {
            None
        }
    }
}

impl Entry {
    /// What the picture shows.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// What goes wrong with the URL, if anything.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// The URL of the list.
    #[must_use]
    pub fn url(&self) -> String {
        if self.fault == Some(Fault::UnresolvableHost) {
            format!("http://gone-{}.demo.invalid{}", self.index, self.path())
        } else {
            format!("http://{HOST}{}", self.path())
        }
    }

    /// The URL's path and query.
    #[must_use]
    pub fn path(&self) -> String {
        match &self.subject {
            Subject::Scene(scene) => format!("/pictures/{:05}.{}", self.index, scene.format.extension()),
            Subject::Photograph { file, number, .. } => format!("/photographs/{file}?n={number}"),
        }
    }

    /// What the list says of the picture.
    #[must_use]
    pub fn caption(&self) -> String {
        match &self.subject {
            Subject::Scene(scene) => scene.caption(&sprites()[scene.sprite].name),
            Subject::Photograph { caption, .. } => (*caption).to_owned(),
        }
    }

    /// Identifies the entry in its catalogue.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// The path to which the entry's own redirects, where it does.
    pub(crate) fn moved_path(&self) -> Option<String> {
        match &self.subject {
            Subject::Scene(scene) if self.fault == Some(Fault::Redirect) => {
                Some(format!("/archive/{:05}.{}", self.index, scene.format.extension()))
            }
            _ => None,
        }
    }
}

/// The positions of the common sprites and of all others.
fn common_and_rare() -> (Vec<usize>, Vec<usize>) {
    (0..sprites().len()).partition(|&position| COMMON.contains(&sprites()[position].name.as_str()))
}

/// Deals sprites in random order, again and again, each round in another order: all are dealt equally often.
struct Deck {
    seed: u64,
    purpose: Purpose,
    sprites: Vec<usize>,
    dealt: usize,
    order: Vec<usize>,
}

impl Deck {
    /// There must be `sprites`.
    fn new(seed: u64, purpose: Purpose, sprites: Vec<usize>) -> Self {
        Self { seed, purpose, sprites, dealt: 0, order: Vec::new() }
    }

    fn draw(&mut self) -> usize {
        let (round, position) = (self.dealt / self.sprites.len(), self.dealt % self.sprites.len());
        if position == 0 {
            self.order = Random::new(self.seed, self.purpose, round).permutation(self.sprites.len());
        }
        self.dealt += 1;
        self.sprites[self.order[position]]
    }
}

fn draw_scenes(pictures: usize, seed: u64) -> Vec<Entry> {
    let (common, rare) = common_and_rare();
    let mut common = Deck::new(seed, Purpose::SceneSprites, common);
    let mut rare = Deck::new(seed, Purpose::RareSprites, rare);
    let draw = |index| {
        let is_common = Random::new(seed, Purpose::Commonness, index).uniform() < COMMON_SHARE;
        let sprite = if is_common { common.draw() } else { rare.draw() };
        Entry { index, subject: Subject::Scene(Scene::draw(seed, index, sprite)), fault: None }
    };
    (0..pictures).map(draw).collect()
}

fn place_photographs(entries: &mut [Entry], seed: u64) {
    for (number, block) in entries.chunks_exact_mut(PHOTOGRAPH_EVERY).enumerate() {
        let photograph = &photographs()[number % photographs().len()];
        let place = Random::new(seed, Purpose::Photographs, number).below(PHOTOGRAPH_EVERY);
        block[place].subject = Subject::Photograph { file: &photograph.file, caption: &photograph.caption, number };
    }
}

fn plant_faults(entries: &mut [Entry], seed: u64) {
    // The faults that only a JPEG can have choose first.
    let mut faults = Fault::ALL;
    faults.sort_by_key(|fault| !fault.needs_jpeg());

    for (number, block) in entries.chunks_exact_mut(FAULT_EVERY).enumerate() {
        let mut places = Random::new(seed, Purpose::Faults, number).permutation(FAULT_EVERY);
        for fault in faults {
            if fault == Fault::UnresolvableHost && number % 2 == 1 {
                continue;
            }
            let suits = |entry: &Entry| match &entry.subject {
                Subject::Scene(scene) => !fault.needs_jpeg() || scene.format == Format::Jpeg,
                Subject::Photograph { .. } => false,
            };
            if let Some(position) = places.iter().position(|&place| suits(&block[place])) {
                block[places.remove(position)].fault = Some(fault);
            }
        }
    }
}
