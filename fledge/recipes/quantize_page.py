"""What `fledge quantize` prints for people."""

from __future__ import annotations

from typing import Any


def page(result: dict[str, Any]) -> str:
    """Sizes, quality and speed before and after, and a table of units where they differ."""
    before, after = result["bytes"]["before"], result["bytes"]["after"]
    lines = [
        f"{result['out']}: {result['method']}, {result['bits_per_weight']:.2f} bits a weight in its linear maps",
        f"bytes         {before:>14,} -> {after:>14,}  ({before / max(1, after):.2f} times smaller)",
    ]
    if result["quality"] is None:
        lines.append("quality       not measured: no text to evaluate on was given")
    else:
        was, now = result["quality"]["before"], result["quality"]["after"]
        rise, allowed = result["loss_increase"], result["allowed_loss_increase"]
        lines.append(f"bits per byte {was['bits_per_byte']:>14.4f} -> {now['bits_per_byte']:>14.4f}")
        lines.append(f"perplexity    {was['perplexity']:>14.4f} -> {now['perplexity']:>14.4f}")
        lines.append(f"loss          {rise:+.4f} nats a token ({allowed:g} allowed) on {result['text']}")
    if "tokens_per_second" in result:
        speed = result["tokens_per_second"]
        lines.append(
            f"tokens/s      {speed['before']:>14.1f} -> {speed['after']:>14.1f}  (one request, this machine now)"
        )
    return "\n".join(lines + table(result))


def table(result: dict[str, Any]) -> list[str]:
    """A line a unit, where they differ in bits or were measured one by one; else those that are not as asked."""
    sensitivities = {row["unit"]: row for row in result.get("sensitivities", ())}
    units = result["units"]
    if not sensitivities:
        return [f"{one['unit']}: {one['scheme']}, as {one['why']}" for one in units if one["why"]]
    width = max(len(one["unit"]) for one in units)
    kinds = sorted({key for row in sensitivities.values() for key in row if key != "unit"})
    lines = [f"{'unit':<{width}} {'weights':>10}  chosen               loss when it alone is " + ", ".join(kinds)]
    for one in units:
        row = sensitivities[one["unit"]]
        rises = ", ".join(f"{row[kind]:+.4f}" if kind in row else "-" for kind in kinds)
        lines.append(f"{one['unit']:<{width}} {one['weights']:>10,}  {one['scheme'] or 'as it was':<20} {rises}")
    return lines
