//! `sample --interactive`: load once, then prompt after prompt.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Result;
use models::text::Truncation;
use sampler::text_to_image::{Picture, Settings, TextToImage, unwatched};

use super::settings::solver;
use super::terminal::Terminal;
use super::{free, numbered, tell_lost};
use crate::settings::size;
use crate::watch::say;

const HELP: &str = "\
A line is a prompt. Lines that begin with a slash change how pictures are made:
  /size 512x384   /steps 25   /guidance 4   /sampler heun   /shift 1
  /negative TEXT  what is not to be seen; without a text, nothing
  /seed 7         of the next picture; each one after has the next seed
  /again          the last prompt, with the next seed
  /settings       what is set          /quit (or Ctrl-D)";

/// What is set.
pub(super) struct Session<'a> {
    pub(super) model: &'a TextToImage,
    /// Made once: to spare memory, the model would read its tokenizers for each line.
    pub(super) truncation: Truncation,
    pub(super) settings: Settings,
    /// Of the next picture; its prompt is that of the last.
    pub(super) next: Picture,
    pub(super) out: PathBuf,
    /// From which on a free one is looked for.
    pub(super) number: usize,
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Said {
    Prompt(String),
    /// Something was set, or asked; words for the person.
    Words(String),
    Nothing,
    Quit,
}

impl Session<'_> {
    /// Reads lines until there are no more.
    pub(super) fn run(&mut self) -> Result<()> {
        let terminal = Terminal::find();
        let is_asked = io::stdin().is_terminal();
        if is_asked {
            say(format_args!("{HELP}\n{}", self.set()))?;
        }
        let mut lines = io::stdin().lock().lines();
        loop {
            if is_asked {
                write!(io::stdout(), "> ")?;
                io::stdout().flush()?;
            }
            let Some(line) = lines.next() else { return Ok(()) };
            match self.hear(&line?) {
                Said::Quit => return Ok(()),
                Said::Nothing => {}
                Said::Words(words) => say(words)?,
                // A wrong size or the like is no reason to load everything again.
                Said::Prompt(prompt) => {
                    if let Err(error) = self.make(prompt, terminal) {
                        say(format_args!("{error:#}"))?;
                    }
                }
            }
        }
    }

    fn make(&mut self, prompt: String, terminal: Option<Terminal>) -> Result<()> {
        self.next.prompt = prompt;
        tell_lost(&self.truncation, std::slice::from_ref(&self.next), &self.settings)?;
        let pictures = self.model.generate(std::slice::from_ref(&self.next), &self.settings, 1, &mut unwatched)?;
        for picture in &pictures {
            let png = sampler::recipe::png(picture, Some(&self.model.recipe(&self.next, &self.settings)))?;
            self.number = free(&self.out, self.number);
            let path = numbered(&self.out, self.number, ".png");
            shards::disk::replace(&path, &png)?;
            if let Some(terminal) = terminal {
                terminal.show(picture, &png, &mut io::stdout().lock())?;
            }
            say(format_args!("{}  seed {}", path.display(), self.next.seed))?;
        }
        self.next.seed = self.next.seed.wrapping_add(1);
        Ok(())
    }

    fn hear(&mut self, line: &str) -> Said {
        let line = line.trim();
        let Some(command) = line.strip_prefix('/') else {
            return if line.is_empty() { Said::Nothing } else { Said::Prompt(line.to_owned()) };
        };
        let (name, value) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let value = value.trim();
        let number = || value.parse::<f64>().map_err(|_not_one| format!("{value:?} is no number"));
        let changed = match name {
            "quit" | "exit" | "q" => return Said::Quit,
            "help" | "?" => return Said::Words(HELP.to_owned()),
            "settings" => Ok(()),
            "again" if self.next.prompt.is_empty() => Err("there was no prompt yet".to_owned()),
            "again" => return Said::Prompt(self.next.prompt.clone()),
            "size" => size(value).map(|size| (self.settings.width, self.settings.height) = (size.width, size.height)),
            "steps" => value
                .parse()
                .map(|steps| self.settings.steps = steps)
                .map_err(|_not_one| format!("{value:?} is no whole number")),
            "guidance" => number().map(|scale| self.settings.guidance.scale = scale),
            "shift" => number().map(|shift| self.settings.shift = shift),
            "sampler" => solver(value).map(|solver| self.settings.sampler = solver),
            "seed" => value
                .parse()
                .map(|seed| self.next.seed = seed)
                .map_err(|_not_one| format!("{value:?} is no whole number")),
            "negative" => {
                value.clone_into(&mut self.next.negative_prompt);
                Ok(())
            }
            _ => Err(format!("/{name} is not known; /help lists what is")),
        };
        Said::Words(changed.map_or_else(|fault| fault, |()| self.set()))
    }

    fn set(&self) -> String {
        let Settings { width, height, steps, guidance, sampler, shift } = &self.settings;
        let negative = match self.next.negative_prompt.as_str() {
            "" => String::new(),
            text => format!(", not {text:?}"),
        };
        format!(
            "{width}x{height}, {steps} steps of {sampler}, guidance {}, shift {shift}, seed {}{negative}",
            guidance.scale, self.next.seed
        )
    }
}
