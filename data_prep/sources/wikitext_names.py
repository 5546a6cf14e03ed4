"""Names that mark what is no prose, in the languages of Wikipedia. Lower-case."""

import functools
import re
from pathlib import Path

from bert_pretrain.files.addresses import Address
from data_prep.sources.streams import blocks

NO_TEXT = frozenset((
    "file", "image", "category", "media", "datei", "bild", "kategorie", "fichier", "catégorie", "archivo", "imagen",
    "categoría", "ficheiro", "imagem", "categoria", "immagine", "bestand", "afbeelding", "categorie", "plik", "grafika",
    "kategoria", "fil", "kategori", "soubor", "kategória", "fájl", "kép", "tiedosto", "luokka", "файл", "изображение",
    "категория", "категорія", "dosya", "berkas", "tập tin", "thể loại", "文件", "图像", "分类", "檔案", "圖像", "分類",
    "ファイル", "画像", "カテゴリ", "파일", "그림", "분류", "ملف", "تصنيف", "پرونده", "رده",
    "קובץ", "קטגוריה", "चित्र", "श्रेणी",
))  # fmt: skip
"""Namespaces whose links are no text, and aliases of them, which dumps do not state."""
_NAMESPACE = re.compile(rb'<namespace key="(?:-2|6|14)"[^>]*>([^<]+)</namespace>')  # media, files, categories

DROPPED_SECTIONS = {
    # English
    "references", "external links", "see also", "notes", "further reading", "bibliography", "sources", "footnotes",
    "citations", "notes and references", "references and notes", "gallery", "works cited", "selected bibliography",
    "discography", "filmography", "external resources", "general references", "literature", "publications",
    # German, Dutch, Swedish
    "einzelnachweise", "weblinks", "literatur", "siehe auch", "anmerkungen", "quellen", "belege", "fußnoten",
    "externe links", "zie ook", "bronnen", "noten", "referenties", "literatuur", "referenser", "externa länkar",
    "se även", "källor", "noter", "fotnoter", "litteratur",
    # French, Spanish, Portuguese, Italian, Catalan
    "références", "liens externes", "voir aussi", "notes et références", "bibliographie", "annexes",
    "articles connexes",
    "referencias", "enlaces externos", "véase también", "bibliografía", "notas", "notas y referencias", "fuentes",
    "referências", "ligações externas", "ver também", "bibliografia", "notas e referências",
    "note", "collegamenti esterni", "voci correlate", "altri progetti", "referències", "enllaços externs",
    "vegeu també",
    # Russian, Ukrainian, Bulgarian, Polish, Czech
    "примечания", "ссылки", "литература", "см. также", "источники", "комментарии", "примітки", "посилання", "джерела",
    "література", "див. також", "бележки", "външни препратки", "източници", "вижте също",
    "przypisy", "linki zewnętrzne", "zobacz też", "uwagi", "reference", "externí odkazy", "související články",
    "poznámky", "odkazy",
    # Finnish, Hungarian, Turkish, Indonesian, Vietnamese
    "lähteet", "aiheesta muualla", "katso myös", "viitteet", "kirjallisuutta", "jegyzetek", "források",
    "további információk", "kaynakça", "dış bağlantılar", "ayrıca bakınız", "referensi", "pranala luar", "lihat pula",
    "tham khảo", "liên kết ngoài", "xem thêm", "chú thích",
    # Chinese, Japanese, Korean
    "参考文献", "參考文獻", "外部链接", "外部連結", "参考资料", "參考資料", "注释", "註釋", "参见", "參見", "参考来源",
    "脚注", "外部リンク", "関連項目", "注釈", "出典", "関連文献", "각주", "외부 링크", "같이 보기",
    "참고 문헌", "참고문헌",
    # Arabic, Persian, Hebrew, Hindi
    "مراجع", "وصلات خارجية", "انظر أيضًا", "انظر أيضا", "المراجع", "منابع", "پیوند به بیرون", "جستارهای وابسته",
    "پانویس",
    "הערות שוליים", "קישורים חיצוניים", "ראו גם", "לקריאה נוספת", "सन्दर्भ", "संदर्भ", "बाहरी कड़ियाँ", "इन्हें भी देखें",
}  # fmt: skip

DISAMBIGUATION = re.compile(
    r"\{\{\s*(?:disambig|disambiguation(?: cleanup)?|hndis|geodis|surname|given name|dab"
    r"|begriffsklärung|homonymie|desambiguación|desambiguação|desambig|disambigua|неоднозначность|багатозначність"
    r"|doorverwijspagina|dp|ujednoznacznienie"
    r"|rozcestník|täsmennyssivu|egyért|förgrening|消歧义|消歧義|disambig-cn|aimai|曖昧さ回避|동음이의|توضيح|ابهام‌زدایی"
    r"|פירושונים|बहुविकल्पी शब्द)\s*(?:\||\}\}|<!--)",  # and no longer name: {{disambiguation needed}} is for a link
    re.IGNORECASE,
)


@functools.lru_cache(maxsize=64)
def no_text_namespaces(dump: Path | Address) -> tuple[str, ...]:
    """The namespaces whose links are no text (media, files, categories), as the head of a dump names them."""
    head = next(blocks(dump), b"").partition(b"<page>")[0]
    return tuple(name.decode(errors="replace").strip().lower() for name in _NAMESPACE.findall(head))
