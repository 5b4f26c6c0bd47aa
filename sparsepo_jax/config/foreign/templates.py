"""A chat template that a config brings, and what it gives to one."""

from typing import Any

from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.shown import shown


def translate_template(fields: Fields, template: Any, arguments: Any = None) -> None:
    """Sets data.template_arguments.

    Args:
        fields: of the config.
        template: Jinja, or the name of one of the other program's. None: the tokenizer's own.
        arguments: go to the template. None: none do.
    """
    if (
        isinstance(template, str)
        and ("{%" in template or "{{" in template)
        and isinstance(arguments or {}, dict)
    ):
        arguments = (arguments or {}) | {"chat_template": template}
        fields.differs(
            "chat_template: exports keep the tokenizer's own: to give them this one, put it into the "
            "tokenizer's directory, as chat_template.jinja"
        )
    elif template is not None:
        fields.differs(
            f"chat_template: {shown(template)}: the tokenizer's own chat template writes messages here: put "
            "this one into its directory, as chat_template.jinja"
        )
    if arguments is not None:
        fields.set("data.template_arguments", arguments)
