//! From what is asked to a prompt's tokens, and from an answer's tokens to text.

use std::path::Path;

use models::ModelError;
use models::tokenizer::{ChatTemplate, Message, MessageInParts, Part, Tokenizer};

use super::chat_files::{ChatFiles, is_llama3};
use crate::captioner::Failure;

/// What stands for the image in a prompt.
const IMAGE: &str = "<image>";

/// What LLaVA-NeXT on Llama 3 was trained with, said where a request has no system text.
const LLAVA_SYSTEM: &str = "You are a helpful language and vision assistant. You are able to understand the visual content that the user \
    provides, and assist the user with a variety of tasks using natural language.";

/// Tokens that end an answer in Llama 3's chats; the folder of LLaVA-NeXT names only one of them.
const ENDS: [&str; 2] = ["<|end_of_text|>", "<|eot_id|>"];

/// How a template wants what is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As texts, with the image's place in them.
    Texts,
    /// As lists of parts; it writes the image's place itself.
    Parts,
}

/// A model's tokenizer and the form of its chats.
#[derive(Debug)]
pub(super) struct Chat {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    begin: String,
    begin_id: Option<i64>,
    end: String,
    form: Form,
    /// Whether the template knows a system's turn; otherwise the user says it first.
    takes_system: bool,
    default_system: Option<&'static str>,
    /// The token that stands for an image, for a model that sees.
    image: Option<i64>,
}

impl Chat {
    /// Of a model with `vocabulary` rows of embeddings, where `image` is the token that stands for an image.
    pub(super) fn open(path: &Path, vocabulary: i64, image: Option<i64>) -> Result<Self, ModelError> {
        let tokenizer = Tokenizer::open(path)?;
        tokenizer.check_fits(vocabulary)?;
        let ChatFiles { template, begin, end } = ChatFiles::read(path, &tokenizer)?;
        let template = ChatTemplate::new(&template)?;
        let mut chat = Self {
            begin_id: tokenizer.id_of(&begin).filter(|_| !begin.is_empty()),
            default_system: (image.is_some() && is_llama3(&tokenizer)).then_some(LLAVA_SYSTEM),
            form: Form::Texts,
            takes_system: true,
            tokenizer,
            template,
            begin,
            end,
            image,
        };
        chat.find_form().map_err(|detail| ModelError::Record {
            path: path.to_owned(),
            what: "chat template",
            detail,
        })?;
        Ok(chat)
    }

    /// Tries the template's forms until what is said comes out.
    fn find_form(&mut self) -> Result<(), String> {
        const SYSTEM: &str = "the system's words";
        const USER: &str = "the user's words";
        let mut why = String::new();
        for takes_system in [true, false] {
            for form in [Form::Texts, Form::Parts] {
                (self.form, self.takes_system) = (form, takes_system);
                let expected = [(SYSTEM, 1), (USER, 1), (IMAGE, usize::from(self.image.is_some()))];
                let is_said = |text: &str| expected.iter().all(|(words, times)| text.matches(words).count() == *times);
                match self.render(Some(SYSTEM), USER, self.image.is_some()) {
                    Ok(text) if is_said(&text) => return Ok(()),
                    Ok(text) => why = format!("what is said does not come out of it once: {text:?}"),
                    Err(error) => why = error.to_string(),
                }
            }
        }
        Err(why)
    }

    /// The prompt as text.
    fn render(&self, system: Option<&str>, prompt: &str, has_image: bool) -> Result<String, ModelError> {
        // Only we make places for images.
        let own = |text: &str| text.replace(IMAGE, "< image>");
        let (system, mut prompt) = (system.or(self.default_system).map(own), own(prompt));
        if let Some(system) = system.as_ref().filter(|_| !self.takes_system) {
            prompt = format!("{system}\n\n{prompt}");
        }
        let system = system.as_deref().filter(|_| self.takes_system);
        match self.form {
            Form::Texts => {
                let content = if has_image { format!("{IMAGE}\n{prompt}") } else { prompt };
                let user = Message { role: "user", content: &content };
                let system = system.map(|content| Message { role: "system", content });
                let messages: Vec<Message<'_>> = system.into_iter().chain([user]).collect();
                self.template.render(&messages, true, &self.begin, &self.end)
            }
            Form::Parts => {
                let text = |text| vec![Part::Text { text }];
                let image = has_image.then_some(Part::Image);
                let user = MessageInParts { role: "user", content: image.into_iter().chain(text(&prompt)).collect() };
                let system = system.map(|system| MessageInParts { role: "system", content: text(system) });
                let messages: Vec<MessageInParts<'_>> = system.into_iter().chain([user]).collect();
                self.template.render_parts(&messages, true, &self.begin, &self.end)
            }
        }
    }

    /// The prompt's tokens: one that begins it, where the model has such a token, and one where the image stands.
    pub(super) fn prompt(&self, system: Option<&str>, prompt: &str, has_image: bool) -> Result<Vec<i64>, Failure> {
        let refused = |detail: String| Failure::Refused { reason: "bad_prompt", detail };
        let failed = |error: ModelError| refused(error.to_string());
        let text = self.render(system, prompt, has_image).map_err(failed)?;
        let encode = |text: &str| self.tokenizer.encode(text, false).map_err(failed);
        let ids = match (self.image, text.split_once(IMAGE)) {
            // A tokenizer that does not know the image's token would spell it out.
            (Some(image), Some((before, after))) if has_image && self.tokenizer.id_of(IMAGE) != Some(image) => {
                [encode(before)?, vec![image], encode(after)?].concat()
            }
            _ => encode(&text)?,
        };
        // Whether or not the template writes it, and however often.
        let is_begin = |id: &&i64| Some(**id) == self.begin_id;
        let ids: Vec<i64> = self.begin_id.into_iter().chain(ids.iter().skip_while(is_begin).copied()).collect();
        let places = ids.iter().filter(|id| Some(**id) == self.image).count();
        if places != usize::from(has_image) {
            return Err(refused(format!("{places} places for {} images come out of it", usize::from(has_image))));
        }
        if ids.is_empty() {
            return Err(refused("it is empty".to_owned()));
        }
        Ok(ids)
    }

    /// An answer's text.
    pub(super) fn text(&self, ids: &[i64]) -> Result<String, ModelError> {
        self.tokenizer.decode(ids, true)
    }

    /// Tokens that end an answer, besides those that the model's configuration names.
    pub(super) fn ends(&self) -> impl Iterator<Item = i64> {
        ENDS.iter().copied().chain([self.end.as_str()]).filter_map(|token| self.tokenizer.id_of(token))
    }
}
