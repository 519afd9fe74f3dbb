//! Chat templates: a list of messages to the prompt that a model was trained on.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;

use crate::ModelError;

/// One turn of a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Message<'a> {
    /// `system`, `user` or `assistant`.
    pub role: &'a str,
    pub content: &'a str,
}

/// One turn of a chat in parts, as the templates of models that see want it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MessageInParts<'a> {
    pub role: &'a str,
    pub content: Vec<Part<'a>>,
}

/// A part of a turn. Templates write a place for each image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part<'a> {
    Image,
    Text { text: &'a str },
}

/// A template in Jinja, as models carry it in `tokenizer.chat_template`. It comes with the model and is not trusted: it sees
/// the messages and nothing else, and it stops after [`STEPS`] steps.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

/// Steps that a template may take: thousands of times what a long chat needs, a fraction of a second.
const STEPS: u64 = 1 << 20;

const NAME: &str = "chat template";

/// What templates find by name; transformers gives them the same.
#[derive(Serialize)]
struct Context<'a, M> {
    messages: &'a [M],
    add_generation_prompt: bool,
    bos_token: &'a str,
    eos_token: &'a str,
    tools: Option<()>,
    documents: Option<()>,
}

impl ChatTemplate {
    /// Reads a template. White space around its blocks is trimmed as transformers does.
    pub fn new(source: &str) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| failed(&error))?);
        environment.set_fuel(Some(STEPS));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, without_generation(source)).map_err(|error| failed(&error))?;
        Ok(Self { environment })
    }

    /// The prompt of a chat. With `add_generation_prompt` it ends where the assistant's answer begins. Encode it without
    /// special tokens: the template writes those it wants, `begin` and `end` (the model's bos and eos) among them.
    pub fn render(
        &self,
        messages: &[Message<'_>],
        add_generation_prompt: bool,
        begin: &str,
        end: &str,
    ) -> Result<String, ModelError> {
        self.render_any(messages, add_generation_prompt, begin, end)
    }

    /// As [`ChatTemplate::render`], of turns in parts.
    pub fn render_parts(
        &self,
        messages: &[MessageInParts<'_>],
        add_generation_prompt: bool,
        begin: &str,
        end: &str,
    ) -> Result<String, ModelError> {
        self.render_any(messages, add_generation_prompt, begin, end)
    }

    fn render_any<M: Serialize>(
        &self,
        messages: &[M],
        add_generation_prompt: bool,
        begin: &str,
        end: &str,
    ) -> Result<String, ModelError> {
        let context =
            Context { messages, add_generation_prompt, bos_token: begin, eos_token: end, tools: None, documents: None };
        let template = self.environment.get_template(NAME).map_err(|error| failed(&error))?;
        template.render(Serde(&context)).map_err(|error| failed(&error))
    }
}

/// Without the blocks by which transformers marks answers for training, which no other Jinja knows. Others stand in their
/// place, since white space is trimmed around blocks.
fn without_generation(source: &str) -> String {
    let mut kept = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, block)) = rest.split_once("{%") {
        let Some((inner, after)) = block.split_once("%}") else { break };
        let with = |name: &str, by: &str| inner.replacen(name, by, 1);
        let inner = match inner.trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+')) {
            "generation" => with("generation", "if true"),
            "endgeneration" => with("endgeneration", "endif"),
            _ => inner.to_owned(),
        };
        kept.extend([before, "{%", &inner, "%}"]);
        rest = after;
    }
    kept + rest
}

fn failed(error: &Error) -> ModelError {
    let value = match error.line() {
        Some(line) => format!("(line {line})"),
        None => "(…)".to_owned(),
    };
    let mut expected = error.kind().to_string();
    if let Some(detail) = error.detail() {
        expected = format!("{expected}, {detail}");
    }
    ModelError::Configuration { what: NAME, value, expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SmolLM2's own.
    const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    const USER: Message<'static> = Message { role: "user", content: "What is <b>2 + 2</b>?\n " };

    fn render(source: &str, messages: &[Message<'_>], prompt: bool) -> Result<String, String> {
        let template = ChatTemplate::new(source).map_err(|error| error.to_string())?;
        template.render(messages, prompt, "<s>", "</s>").map_err(|error| error.to_string())
    }

    #[test]
    fn the_template_of_smollm2() {
        let alone = render(SMOLLM2, &[USER], true).unwrap();
        let expected = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
            <|im_start|>user\nWhat is <b>2 + 2</b>?\n <|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(alone, expected);

        let system = Message { role: "system", content: "Be brief." };
        let answer = Message { role: "assistant", content: "4" };
        let chat = render(SMOLLM2, &[system, USER, answer], false).unwrap();
        let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is <b>2 + 2</b>?\n <|im_end|>\n\
            <|im_start|>assistant\n4<|im_end|>\n";
        assert_eq!(chat, expected);
    }

    /// The expected text is Jinja2's, with `trim_blocks` and `lstrip_blocks`.
    #[test]
    fn blocks_are_trimmed_and_python_s_methods_are_there() {
        let source = "{{ bos_token }}\n  {% for message in messages %}\n    {% set text = message.content.strip() %}\n\
            {{ loop.index }} {{ message['role'] | upper }}: {{ text | trim }}\n  {% endfor %}\n\
            {% if tools is not none %}tools{% endif %}{% if not documents %}end{{ eos_token }}{% endif %}\n";
        assert_eq!(render(source, &[USER], true).unwrap(), "<s>\n1 USER: What is <b>2 + 2</b>?\nend</s>");
    }

    /// The form of LLaVA-NeXT's template for Llama 3, with transformers' own blocks in it.
    #[test]
    fn turns_may_come_in_parts() {
        let source = "{% for m in messages %}{{ '[' + m['role'] + ']\n' }}{# Render all images first #}\
            {% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}\
            {% for c in m['content'] | selectattr('type', 'equalto', 'text') %}\
            {%- generation -%} {{ c['text'] }} {% endgeneration %}\n{% endfor %}{{ '.' }}{% endfor %}\
            {% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}";
        let text = |text| Part::Text { text };
        let messages = [
            MessageInParts { role: "system", content: vec![text("Help.")] },
            MessageInParts { role: "user", content: vec![text("What is it?"), Part::Image] },
        ];
        let chat = ChatTemplate::new(source).unwrap().render_parts(&messages, true, "", "").unwrap();
        assert_eq!(chat, "[system]\nHelp. .[user]\n<image>\nWhat is it? .[assistant]");
    }

    #[test]
    fn a_template_cannot_run_away_and_its_faults_are_errors() {
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a %}{% endfor %}{% endfor %}";
        let cases = [
            (endless, "fuel"),
            ("{% for message in messages %}", "syntax error"),
            ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
            ("{{ messages[7].content.x }}", "undefined"),
            ("{% include '/etc/passwd' %}", "chat template"),
        ];
        for (source, words) in cases {
            let error = render(source, &[USER], true).unwrap_err();
            assert!(error.contains(words) && error.contains("chat template"), "{error}");
        }
    }
}
