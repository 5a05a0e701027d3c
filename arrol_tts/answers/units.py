"""Units, currencies, per cent in words and words for powers of ten: what a quantity is measured in.

A question asks in one unit, so a unit is dropped. A word is a unit if it is known as one, or if it is a common
noun in lower case (``12 apples``) that says nothing of the number's size or sign: ``2 thirds``, ``10 squared``
and ``5 more`` keep their words, and are compared as text.
"""

# ruff: noqa: RUF001 - letters of other scripts are meant

from __future__ import annotations

import re
from collections.abc import Sequence

from arrol_tts.answers.tokens import vocabulary, word

_SYMBOLS = vocabulary(
    """
    m g s h N J W V A K C F L l T cm mm km dm nm pm um kg mg mcg ml mL cl dl kL ft in hr hrs ms ns min mins
    sec secs yd yds mi lb lbs oz mph kph Hz kHz MHz GHz eV keV MeV GeV TeV Pa kPa MPa hPa atm bar mmHg torr kJ
    MJ kN kW MW GW kWh Wh mV kV mA mol mmol kmol mole rad rads deg sr sq cu erg ergs dyn AU au pc Mpc kpc Gpc
    ly Wb lm lx cd dB ha rpm rps fps cal kcal amu mK GB MB KB kB TB bits USD EUR GBP INR AUD CAD JPY CNY RMB
    Rs Torr mT Oe km2 cm2 cm3 m2 m3 ppm ppb dpi yr yrs wk wks mo gal qt pt pts tsp tbsp
    """
)
_RAW_SYMBOLS = frozenset(symbol for symbol in _SYMBOLS if len(symbol) > 1) - {
    "pc",
    "pm",
    "ms",
    "mi",
    "mo",
    "pt",
    "au",
}
"""Those that are units when they are written as formulas: a single letter is a variable there."""
_OVER = frozenset(("m", "g", "J", "N", "V", "W", "C", "K", "A"))
_UNDER = frozenset(("s", "h", "m", "L", "K", "C", "mol", "kg", "cm", "min", "hr", "g"))
"""Single letters are units in quotients such as m/s."""

_FOREIGN = vocabulary(
    """
    元 角 分 米 厘米 毫米 千米 公里 分米 纳米 微米 里 尺 平方米 平方厘米 平方千米 平方公里 平方分米
    立方米 立方厘米 立方分米 度 摄氏度 个 只 人 名 岁 天 日 年 月 个月 周 星期 小时
    时 分钟 秒 千克 公斤 克 吨 斤 升 毫升 本 支 条 件 张 块 次 种 页 辆 棵 朵 箱 台 层 间 颗 把 枝 头 匹
    座 套 株 袋 瓶 盒 杯 位 道 题 步 倍 组 项 位数 美元 欧元 日元
    英镑 円 圆 人民币 公顷 亩 单位 弧度 牛 牛顿 焦耳 瓦 伏 安 欧姆 米每秒 千米每小时 歲 個 個月 隻 張 塊
    種 頁 輛 顆 公尺 公分 度角 ミリ センチ メートル キロ グラム 枚 回 時間 원
    개 명 시간 분 초 미터 살 번 см мм м км кг г мг ч мин с сек руб рублей рубля рубль л мл т дней день
    дня лет год года
    часов часа час минут минуты секунд см2 м2 градусов градуса яблок человек штук шт μm
    """
)
_FOREIGN_SCALES = {
    "万": 4,
    "萬": 4,
    "亿": 8,
    "億": 8,
    "千": 3,
    "百": 2,
    "만": 4,
    "억": 8,
    "тыс": 3,
    "млн": 6,
    "млрд": 9,
}

SCALES = {"hundred": 2, "thousand": 3, "lakh": 5, "lac": 5, "million": 6, "crore": 7, "billion": 9, "trillion": 12}
SCALES |= {name + "s": power for name, power in SCALES.items()}

_LINKS = frozenset(("of", "the", "a", "an", "per", "each", "every", "in", "total"))
_NO_UNITS = vocabulary(
    """
    half halves third thirds fourth fourths quarter quarters fifth fifths dozen dozens score scores gross pair
    pairs couple couples double triple twice thrice once zero one two three four five six seven eight nine ten
    eleven twelve twenty thirty forty fifty factorial mil mille cien cientos ciento millon millones mill
    milliard milliards milliarden millionen milliarde tausend hundert bilhoes milhoes milioni miliardi percent
    percentage cent_mille googol infinity infinite even odd prime primes more less fewer greater larger
    smaller bigger higher lower older younger taller shorter longer heavier lighter faster slower earlier
    later warmer colder hotter cooler deeper wider narrower nearer farther further closer richer poorer better
    worse cheaper than least most max min maximum minimum left right above below under over up down upward
    upwards downward downwards forward forwards backward backwards north south east west northeast northwest
    southeast southwest increase decrease gain gains loss profit rise drop fall growth decline discount off
    surplus deficit debt credit debit refund before after ago early late past until since short extra behind
    ahead inside outside clockwise counterclockwise anticlockwise positive negative plus minus times divided
    modulo mod base root roots power not none never nor but only except without with when where whenever for
    from into onto out between among through if then else because is are was were has have had can will may
    might must should would could all any some every both either neither this that these those there here
    which who what how why and or to as at by on solution solutions true false yes unknown undefined
    approximately approx about around nearly almost exactly roughly respectively sin cos tan cot sec csc log
    ln exp sqrt lim sum pi am pm noon midnight o'clock oclock
    """
)
_SHORT_ED = frozenset(("bed", "beds", "red", "seed", "feed", "weed", "shed", "sled", "speed", "breed"))
_CURRENCY = frozenset(("usd", "eur", "gbp", "inr", "aud", "cad", "jpy", "cny", "rmb", "rs", "us"))
_VALUE_ENDS = frozenset((")", "}", r"\pi", "pi", "%", "°", "!"))
_DEGREES = frozenset(("degree", "degrees", "deg"))
_TRIGONOMETRIC = re.compile(r'["\\]?(?:arc)?(?:sin|cos|tan|cot|sec|csc)')
_FAMILIES = (
    "second minute hour day week month year sec min hr",
    "inch foot yard mile in ft yd inche feet",
    "dollar cent",
    "pound ounce lb oz",
    "kilometer meter centimeter millimeter km m cm mm",
    "kilogram gram kg g",
)


def _is_noun(name: str) -> bool:
    """Whether a word in lower case is a common noun that can be counted, as far as its form tells."""
    if not (len(name) > 2 and name.isascii() and name.isalpha() and name.islower()) or name in _NO_UNITS:
        return False
    if name.endswith(("th", "ths")) and name not in (
        "month",
        "months",
        "math",
        "maths",
        "moths",
        "depth",
        "length",
        "path",
    ):
        return False  # tenths
    if name.endswith("ed") and name not in _SHORT_ED:  # squared
        return False
    return bool(set(name) & set("aeiou")) and not set(name) <= set("abcdxyz")  # 3xyz is a product


_SHORT_NOUNS = vocabulary(
    """
    men man cup egg hen pen cat dog car bus box toy bag hat kid ant bee pie mug can jar gem tin ton bit day
    row set way win job key map bar bug pig cow rod lap tie unit units mile feet foot inch gram cent year hour
    week
    """
)


def _is_unit(tokens: Sequence[str], i: int) -> int:
    """How many tokens from ``i`` make one word of a unit; 0 if none do."""
    token = tokens[i]
    if token == r"\mu":
        following = word(tokens[i + 1]) if i + 1 < len(tokens) else ""
        return 2 if following in ("m", "s", "g", "c", "f", "a", "l", "j") else 0
    if token == r"\Omega":
        return 1
    name = token.lstrip('"')
    if not name.isalpha() and name not in _FOREIGN:
        return 0
    upright = token[0] == '"'
    known = name in _SYMBOLS | _FOREIGN if upright else name in _RAW_SYMBOLS
    noun = name in _SHORT_NOUNS or (_is_noun(name) and (upright or len(name) > 3))
    return int(known or noun or name in _LINKS or name.casefold() in _LONG_NAMES)


_LONG_NAMES = vocabulary(
    """
    newton newtons joule joules watt watts volt volts ampere amperes amp amps kelvin kelvins celsius
    fahrenheit pascal pascals hertz coulomb coulombs ohm ohms tesla farad henry mole moles usd eur gbp inr
    dollars dollar euros euro
    """
)


def _unit_words(tokens: Sequence[str]) -> tuple[str, ...]:
    """The words of tokens that are a unit from first to last; () if they are none."""
    words: list[str] = []
    i, depth = 0, 0
    fraction = bool(tokens) and tokens[0] == r"\frac"
    while i < len(tokens):
        token = tokens[i]
        step = 1
        if token in ("/", "*", ".", "-") or (fraction and token in ("{", "}", r"\frac")):
            if token == "." and not words:
                return ()
        elif token in ("(", ")"):
            depth += 1 if token == "(" else -1
        elif token == "^" and words:
            step = _exponent_length(tokens[i:])
            if not step:
                return ()
        elif token[0].isalpha() and len(token) == 1 and _in_quotient(tokens, i):
            words.append(token)
        else:
            step = _is_unit(tokens, i)
            if not step or len(words) > 7:
                return ()
            words.append(word(token) or token)
        i += step
    says_nothing = {*words} <= {"a", "an", "the", "of", "in"}
    return () if depth or says_nothing else tuple(words)


def _in_quotient(tokens: Sequence[str], i: int) -> bool:
    if i + 2 <= len(tokens) - 1 and tokens[i + 1] == "/":
        return tokens[i] in _OVER and tokens[i + 2].lstrip('"') in _UNDER
    return i >= 2 and tokens[i - 1] == "/" and tokens[i] in _UNDER


def _exponent_length(tokens: Sequence[str]) -> int:
    match = re.match(r"\^ (?:\{ (?:- )?[0-9] \}|(?:- )?[0-9])(?= |$)", " ".join(tokens[:6]))
    return match[0].count(" ") + 1 if match else 0


def with_percent_signs(tokens: list[str]) -> list[str]:
    """The tokens with per cent written as a sign."""
    result: list[str] = []
    i = 0
    while i < len(tokens):
        name = word(tokens[i])
        if result and name in ("percent", "pct", "percentage", "per"):
            following = word(tokens[i + 1]) if i + 1 < len(tokens) else ""
            if name != "per" or following == "cent":
                result.append("%")
                i += 2 if name == "per" or (name == "percentage" and following in ("points", "point")) else 1
                continue
        result.append(tokens[i])
        i += 1
    return result


def measured(tokens: list[str]) -> tuple[list[str], int, tuple[str, ...]]:
    """A quantity as its number's tokens, the power of ten that words multiply it by, and the words of its unit."""
    tokens = _without_currency(tokens)
    depth = 0
    for i, token in enumerate(tokens):
        if (
            i
            and depth == 0
            and tokens[i - 1][-1].isdigit() | (tokens[i - 1] in _VALUE_ENDS)
            and _may_start(tokens, i)
        ):
            power, start = _scale(tokens, i)
            rest = tokens[start:]
            if rest and word(rest[0]) in _DEGREES and any(map(_TRIGONOMETRIC.fullmatch, tokens[:i])):
                return [*tokens[:i], "°", *rest[1:]], power, ()
            unit = _unit_words(rest)
            if (unit or not rest) and (power or unit):
                return tokens[:i], power, unit
        depth += (token in ("(", "[", "{", r"\{")) - (token in (")", "]", "}", r"\}"))
    if len(tokens) > 2 and tokens[-2] == "°" and tokens[-1].lstrip('"') in ("C", "F", "K"):
        return tokens[:-2], 0, (tokens[-1].lstrip('"'),)
    return tokens, 0, ()


def _may_start(tokens: Sequence[str], i: int) -> bool:
    token = tokens[i]
    following = tokens[i + 1] if i + 1 < len(tokens) else ""
    if token in ("(", r"\frac"):
        inner = tokens[i + 2] if token == r"\frac" and i + 2 < len(tokens) else following
        return inner[:1] == '"' or inner in _RAW_SYMBOLS
    return (
        token[0] == '"'
        or token in (r"\mu", r"\Omega", "/")
        or (token[0].isalpha() and (len(token) > 1 or following == "/"))
    )


def _scale(tokens: Sequence[str], i: int) -> tuple[int, int]:
    """The power of ten that words from ``i`` stand for, and the index after them."""
    power = 0
    while i < len(tokens) and word(tokens[i]) in SCALES:
        power += SCALES[word(tokens[i])]
        i += 1
    if not power and tokens[i][0] == '"' and len(tokens) == i + 1:
        for name, exponent in _FOREIGN_SCALES.items():
            rest = tokens[i][1:].removeprefix(name)
            if rest != tokens[i][1:] and (not rest or rest in _FOREIGN):
                return exponent, i + 1
    return power, i


def _without_currency(tokens: list[str]) -> list[str]:
    """Without the name of a currency before the number."""
    start = 1 if tokens and tokens[0] == "-" else 0
    if len(tokens) > start + 1 and word(tokens[start]) in _CURRENCY:
        number = start + 1 + (tokens[start + 1] == ".")
        if number < len(tokens) and tokens[number][0].isdigit():
            return tokens[:start] + tokens[number:]
    return tokens


def are_one_quantity(units: Sequence[tuple[str, ...]]) -> bool:
    """Whether amounts in these units add up to one, as hours and minutes do, rather than being several answers."""
    firsts = {unit[0].removesuffix("s") for unit in units if unit}
    return len(firsts) > 1 and any(firsts <= set(family.split()) for family in _FAMILIES)
