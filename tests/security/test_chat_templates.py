"""Chat templates of strangers: whatever they do, they end soon, in any thread, and take little memory."""

import resource
import threading
import time
from types import SimpleNamespace

import pytest

from omnitune.demo.text_encoder import CHAT_TEMPLATE
from omnitune.models.text.chat_template import MAX_TEMPLATE
from omnitune.models.text.prompts import SYSTEM_PROMPT, apply_chat_template

pytestmark = pytest.mark.unit

LOOP = "{% for a in range(99999) %}"
DOUBLE = "{% set n = namespace(x='ab') %}{% for a in range(60) %}"
QWEN = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}{% if loop.first and message['role'] != "
    "'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] "
    "}}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}{% for content in "
    "message['content'] %}{% if content['type'] == 'image' or 'image' in content %}{% set image_count.value = "
    "image_count.value + 1 %}{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VARIED = (
    "{%- macro turn(message) -%}{{ message.role | upper }}: {{ message.content | trim }}{%- endmacro -%}"
    "{%- for message in messages[::-1] if message.content -%}{% set k = loop.index0 %}"
    "{{ k ~ '/' ~ loop.length }} {{ turn(message) }}{{ '\n' if not loop.last }}{% generation %}.{% endgeneration %}"
    "{%- endfor %}{{ ['a', 'b'] | join('-') }}{{ messages[0].content.replace('a', 'bb').split(' ')[-1] }}"
    "{{ {'a': [1, true]} | tojson }}{{ 'x' * 3 }}{{ eos_token | default('none') }}{{ messages | length + 1 }}"
    "{% set c %}{{ messages[-1]['content'] }}{% endset %}{{ c is string and 'cat' in c }}"
    "{% filter upper %}z{% endfilter %}"
)


def templated(template: object) -> SimpleNamespace:
    """A tokenizer that is its template."""
    return SimpleNamespace(chat_template=template, special_tokens_map={"eos_token": "<|im_end|>"})


@pytest.mark.parametrize("template", [QWEN, CHAT_TEMPLATE, VARIED])
def test_usual_templates_are_rendered_as_the_library_does(template: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for instruction in ("Draw a cat.", " <b>{{ 7 * 7 }}</b>\n猫 ", "a cat " * 3000):
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": instruction}]
        expected = render_jinja_template([messages], chat_template=template, eos_token="<|im_end|>")[0][0]
        assert apply_chat_template(templated(template), instruction) == expected
        assert apply_chat_template(templated({"default": template}), instruction) == expected


@pytest.mark.parametrize(
    "template",
    [
        f"{LOOP}{LOOP}{{% endfor %}}{{% endfor %}}",
        f"{LOOP}{'text ' * 1000}{{% endfor %}}",
        f"{LOOP}{{{{ messages[0].content }}}}{{% endfor %}}",
        f"{LOOP}{{% set b = a in range(99999) | list %}}{{% endfor %}}",
        f"{LOOP}{{% if messages[0].content == messages[0].content %}}{{% endif %}}{{% endfor %}}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
        "{{ 'abc' * 1000000000 }}",
        "{{ 1000000000 * [1] }}",
        f"{DOUBLE}{{% set n.x = n.x ~ n.x %}}{{% endfor %}}",
        f"{DOUBLE}{{% set n.x = n.x + n.x %}}{{% endfor %}}",
        f"{DOUBLE}{{% set n.x %}}{{{{ n.x }}}}{{{{ n.x }}}}{{% endset %}}{{% endfor %}}",
        f"{DOUBLE}{{% set n.x = [n.x, n.x] %}}{{% endfor %}}{{{{ n.x }}}}",
        f"{DOUBLE}{{% set n.x = (n.x, n.x) %}}{{% endfor %}}{{{{ n.x == n.x }}}}",
        f"{DOUBLE}{{% set n.x = {{'a': n.x, 'b': n.x}} %}}{{% endfor %}}{{{{ n.x | tojson }}}}",
        f"{DOUBLE}{{% set n.x = namespace(a=n.x, b=n.x) %}}{{% endfor %}}{{{{ n.x }}}}",
        f"{DOUBLE}{{% set n.x = dict(a=n.x, b=n.x) %}}{{% endfor %}}{{{{ n.x }}}}",
        f"{DOUBLE}{{% set n.x = n.x.replace('ab', n.x + n.x) %}}{{% endfor %}}",
        f"{DOUBLE}{{% set n.x = n.x | replace('', n.x) %}}{{% endfor %}}",
        f"{DOUBLE}{{% set n.x = n.x.join([n.x, n.x, n.x]) %}}{{% endfor %}}",
        f"{DOUBLE}{{% set n.x = [n.x, n.x] | join(n.x) %}}{{% endfor %}}",
        "{% set n = namespace(x=3) %}" + LOOP + "{% set n.x = n.x * n.x %}{% endfor %}",
    ],
)
def test_a_template_that_does_too_much_is_stopped(template: str) -> None:
    """Outside of the main thread, too, as training renders."""
    before, started, said = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic(), []

    def render() -> None:
        try:
            apply_chat_template(templated(template), "a cat")
        except ValueError as error:
            said.append(str(error))

    thread = threading.Thread(target=render, daemon=True)
    thread.start()
    thread.join(60)
    assert said == ["the tokenizer's chat template does more than a chat needs, and was stopped."]
    assert time.monotonic() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize(
    "template",
    [
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ (1).to_bytes(1000000000, 'big') }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        "{{ lipsum(1000000) }}",
        "{% for a in [[]] recursive %}{{ loop(a) }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
        "{% include 'x' %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% for",
        "x" * (MAX_TEMPLATE + 1),
        "{% set x = [" + "1," * 40_000 + "] %}",
    ],
)
def test_a_template_that_asks_for_what_no_chat_needs_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"^the tokenizer's chat template cannot be used: ."):
        apply_chat_template(templated(template), "a cat")
