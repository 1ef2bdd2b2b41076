"""Whose child is it? Hone never takes over what is not its own."""

from hone_api.reasons import NAME_CONFLICT, HoneError

from hone_operator.resources import Object, controller_of, is_controlled_by


def is_leaving(child: Object | None, owner: Object) -> bool:
    """Whether a child is on its way out, such as that of an object of the same name that was deleted just now."""
    if child is None:
        return False
    reference = controller_of(child)
    of_predecessor = (
        reference is not None
        and reference["kind"] == owner["kind"]
        and reference["name"] == owner["metadata"]["name"]
        and reference["uid"] != owner["metadata"]["uid"]
    )
    return of_predecessor or bool(child["metadata"].get("deletionTimestamp"))


def conflict(children: list[Object], owner: Object) -> HoneError | None:
    """An error when something else has the name of a child."""
    for child in children:
        if not is_controlled_by(child, owner):
            found = f"{child['kind']} {child['metadata']['name']} exists and does not belong to this {owner['kind']}"
            return HoneError(NAME_CONFLICT, found)
    return None
